"""Builds one engine, in a process of its own: ``python -m device_agent.trt_builder REQUEST``.

REQUEST is a JSON file that ``trt_build`` writes; the answer goes to its ``answer``. Such a process
gives all of its memory back at its end, and is the one that the kernel kills if memory runs out.
The order of calls is that of TensorRT's developer guide: network, parser, configuration, timing
cache, build, serialise.
"""

import ctypes
import os
import signal
import sys
import time

from . import files, onnx_nodes, trt_api, trt_names

QUANTIZING = ("QuantizeLinear", "DequantizeLinear")
# What trtexec takes: averages over as many timings make less of one that was disturbed.
TIMINGS = 8
PRECISIONS = {"fp32": "float32", "fp16": "float16", "int8": "int8"}
PR_SET_PDEATHSIG = 1


class NetworkRefused(Exception):
    """TensorRT cannot use the network; the message names node, operator and reason."""


class BuildFailed(Exception):
    """TensorRT made no engine of a network that it could parse."""


class OutOfDeviceMemory(BuildFailed):
    """It made none because memory ran out; a smaller workspace may do."""


def parse(trt, network, data, nodes, log):
    """Fill ``network`` from an ONNX file's bytes; ``NetworkRefused`` passes the errors on."""
    parser = trt.OnnxParser(network, log)
    if parser.parse(data):
        return parser
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    told = [_error(trt, error, nodes) for error in errors] or [log.errors() or "it says not why"]
    raise NetworkRefused("%s cannot parse this network: %s" % (trt_api.title(trt), "; ".join(told)))


def _error(trt, error, nodes):
    """One error of the parser, with the node's name, which older versions leave out."""
    index, name, op = error.node(), "", ""
    if trt_api.features(trt)["node_names_in_errors"]:
        name, op = error.node_name(), error.node_operator()
    elif 0 <= index < len(nodes):
        name, op = nodes[index].name, nodes[index].op
    where = ""
    if index >= 0 and (name or op):
        where = "node %d, %s (%s): " % (index, name or "without a name", op or "operator unknown")
    code = str(error.code()).rpartition(".")[2]
    return "%s%s [%s in %s]" % (where, error.desc().strip(), code, error.func())


def check_quantized(nodes, fast_int8):
    """Whether it is a Q/DQ network; refused on a chip without fast int8, as TensorRT would."""
    first = next((node for node in nodes if node.op in QUANTIZING), None)
    if first is not None and fast_int8 is False:
        raise NetworkRefused(
            "node %s (%s): this chip has no fast int8, and TensorRT refuses quantized networks on "
            "it; int8 is a storage format here: dequantize the weights before the build"
            % (first.name or "without a name", first.op)
        )
    return first is not None


def create_network(trt, builder, strong):
    """An empty network, and whether it is strongly typed; asked for or the only way."""
    has = trt_api.features(trt)
    if strong and not has["strong_typing"]:
        raise trt_api.UnsupportedOption(
            "%s has no strongly typed networks: take the precisions as flags" % trt_api.title(trt)
        )
    strong = strong or not has["weak_typing"]
    kinds, flags = trt.NetworkDefinitionCreationFlag, 0
    if has["explicit_batch"]:
        flags |= 1 << int(kinds.EXPLICIT_BATCH)
    if strong:
        flags |= 1 << int(kinds.STRONGLY_TYPED)
    return builder.create_network(flags), strong


def set_precisions(trt, config, options, strong, quantized):
    """Set the flags that allow precisions beside fp32, and how firmly those of layers bind."""
    flags, wanted = trt.BuilderFlag, set(options["flags"]) - {"tf32"}
    if strong and (wanted or options["layers"]):
        raise trt_api.UnsupportedOption(
            "%s takes precisions from the ONNX file's own types here: convert the network (fp16), "
            "or quantize it (int8), and leave the flags out" % trt_api.title(trt)
        )
    if "int8" in wanted and not quantized:
        raise trt_api.UnsupportedOption(
            "int8 needs a quantized network (Q/DQ), which this one is not: without one TensorRT "
            "would time made-up ranges"
        )
    if "tf32" not in options["flags"]:
        config.clear_flag(flags.TF32)  # set by default, and fp32 would not be fp32
    if quantized and not strong:
        wanted.add("int8")  # Q/DQ networks need the flag, whoever forgot it
    wanted |= set(options["layers"].values()) - {"fp32"}
    for precision in sorted(wanted):
        config.set_flag(getattr(flags, precision.upper()))
    if options["layers"] and trt_api.features(trt)["precision_constraints"]:
        config.set_flag(getattr(flags, options["constraints"].upper() + "_PRECISION_CONSTRAINTS"))
    elif options["layers"]:
        config.set_flag(flags.STRICT_TYPES)


def configure(trt, config, workspace_bytes):
    """Set workspace, verbosity and how often tactics are timed."""
    if trt_api.features(trt)["memory_pools"]:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    else:
        config.max_workspace_size = workspace_bytes
    verbosity = trt.ProfilingVerbosity
    # 8.0 and 8.2 differ in the name; without it layers are named but not described.
    config.profiling_verbosity = getattr(verbosity, "DETAILED", None) or verbosity.VERBOSE
    config.avg_timing_iterations = TIMINGS


def set_layer_precisions(trt, network, layers, names):
    """Give the layers of the named nodes their precision; nodes that are not there are an error."""
    unknown = sorted(set(layers) - {name for name in layers if name in names})
    if unknown:
        raise trt_api.UnsupportedOption(
            "precisions are given for nodes that the network has not: %s" % ", ".join(unknown[:5])
        )
    done = set()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        node = names.node(layer.name)
        if node not in layers or layer.type in (trt.LayerType.CONSTANT, trt.LayerType.SHAPE):
            continue
        outputs = [layer.get_output(number) for number in range(layer.num_outputs)]
        # Shapes and indices are integers whatever computes with them.
        if any(one.dtype not in (trt.float32, trt.float16, trt.int8) for one in outputs):
            continue
        kind = getattr(trt, PRECISIONS[layers[node]])
        layer.precision = kind
        if layers[node] != "int8":  # the Q behind it says what an int8 layer gives
            for number in range(layer.num_outputs):
                layer.set_output_type(number, kind)
        done.add(node)
    return sorted(set(layers) - done)


def add_profile(builder, config, network):
    """A network that leaves its batch open is built for one input."""
    profile, needed = builder.create_optimization_profile(), False
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(tensor.shape)
        if -1 not in shape:
            continue
        if -1 in shape[1:]:
            raise NetworkRefused(
                "input %s has shape %s: export the network with fixed sizes (only the batch may "
                "vary)" % (tensor.name, list(shape))
            )
        fixed = (1,) + shape[1:]
        profile.set_shape(tensor.name, fixed, fixed, fixed)
        needed = True
    if needed:
        config.add_optimization_profile(profile)


def build(trt, path, options, workspace_bytes, timing_cache, compute):
    """The serialised engine, the timing cache (or None) and what there is to tell of the build.

    ``timing_cache`` is an earlier one's bytes, empty for a new one, None for none.
    """
    nodes = onnx_nodes.read_nodes(path)[0]
    if not nodes:
        raise onnx_nodes.NoOnnxFile("this is no ONNX file, or one without a single node")
    log = trt_api.logger(trt)
    builder = trt.Builder(log)
    fast_fp16, fast_int8 = trt_api.fast_precisions(trt, builder, compute)
    quantized = check_quantized(nodes, fast_int8)
    network, strong = create_network(trt, builder, options["strongly_typed"])
    with open(path, "rb") as stream:
        parser = parse(trt, network, stream.read(), nodes, log)
    config = builder.create_builder_config()
    set_precisions(trt, config, options, strong, quantized)
    configure(trt, config, workspace_bytes)
    names = trt_names.Names(nodes)
    left = set_layer_precisions(trt, network, options["layers"], names)
    add_profile(builder, config, network)
    cache = None
    if timing_cache is not None and trt_api.features(trt)["timing_cache"]:
        cache = config.create_timing_cache(timing_cache)
        if cache is None or not config.set_timing_cache(cache, False):
            # Of another version, or damaged: a new one.
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, False)
    start_s = time.monotonic()
    plan = builder.build_serialized_network(network, config)
    build_s = time.monotonic() - start_s
    del parser  # until now: the network's weights are its own
    if plan is None:
        kind = OutOfDeviceMemory if "out of memory" in log.errors().lower() else BuildFailed
        reason = log.errors() or "it says not why"
        raise kind("%s built no engine: %s" % (trt_api.title(trt), reason))
    facts = {
        "build_s": build_s,
        "strongly_typed": strong,
        "fast_fp16": fast_fp16,
        "fast_int8": fast_int8,
        "quantized": quantized,
        "without_precision": left,
        "log": list(log.lines),
    }
    return bytes(plan), None if cache is None else bytes(cache.serialize()), facts


def main(request_path):
    """Exit code; the answer is a file, because native libraries print to stdout."""
    # Nobody wants the engine any more where whoever asked for it is gone; and of all processes this
    # is the one to be killed where memory runs out.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    try:
        with open("/proc/self/oom_score_adj", "w") as stream:
            stream.write("1000")
    except OSError:
        pass
    request = files.read_object(request_path)
    try:
        trt = trt_api.load(request["flavour"])
        timing_cache = None
        if request["timing_cache"]:
            old = request["timing_cache"]
            timing_cache = files.read_bytes(old) if os.path.exists(old) else b""
        plan, cache, facts = build(
            trt,
            request["network"],
            request["options"],
            request["workspace_bytes"],
            timing_cache,
            request["compute"],
        )
        with open(request["plan"], "wb") as stream:
            stream.write(plan)
        if cache is not None:
            with open(request["new_cache"], "wb") as stream:
                stream.write(cache)
        answer = {"facts": facts}
    except (NetworkRefused, BuildFailed, trt_api.UnsupportedOption, onnx_nodes.NoOnnxFile) as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    files.write_json(request["answer"], answer)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
