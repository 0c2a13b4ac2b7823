"""The stand-in's network, parser, configuration and builder."""

import json
import os
import signal
import time

from tensorrt8_base import (
    LAYER_TYPES,
    ONNX_TYPES,
    VERSION,
    BuilderFlag,
    ErrorCode,
    IHostMemory,
    ILogger,
    LayerType,
    Member,
    NetworkDefinitionCreationFlag,
    ProfilingVerbosity,
    Strict,
    __version__,
    call,
    compute,
    enumeration,
    float16,
    float32,
    made_logger,
    wanted,
)
from tensorrt8_file import fields, one_of

KNOWN = (
    "Add AveragePool BatchNormalization Clip Concat Constant Conv DequantizeLinear Flatten Gemm "
    "GlobalAveragePool HardSigmoid Identity MatMul MaxPool Mul QuantizeLinear ReduceMean Relu "
    "Reshape Sigmoid Slice Softmax Split"
)
FUSED = {"Conv": ("Add", "Relu", "BatchNormalization"), "Gemm": ("Relu",)}


class ITensor(Strict):
    def __init__(self, name, shape, dtype):
        self._name, self._shape, self._dtype = name, shape, dtype

    name = property(lambda self: self._name)
    shape = property(lambda self: self._shape)
    dtype = property(lambda self: self._dtype)


def _tensor(info):
    dims = []
    for number, value in fields(one_of(info, 2, 1, 2) or b""):
        size = one_of(value, 1) if number == 1 else None
        dims.append(size if isinstance(size, int) else -1)
    return ITensor(one_of(info, 1).decode(), tuple(dims), ONNX_TYPES[one_of(info, 2, 1, 1)])


class ILayer(Strict):
    def __init__(self, name, op, inputs, outputs):
        self._name, self._op, self._inputs, self._outputs = name, op, inputs, outputs
        self._precision, self._output_types = None, {}

    name = property(lambda self: self._name)
    type = property(lambda self: getattr(LayerType, LAYER_TYPES.get(self._op, "OTHER")))
    num_outputs = property(lambda self: len(self._outputs))

    @property
    def precision(self):
        return self._precision or float32

    @precision.setter
    def precision(self, value):
        self._precision = wanted(value, Member, "precision")
        call("layer.precision", self._name, value)

    def get_output(self, index):
        return ITensor(self._outputs[wanted(index, int, "index")], (1,), float32)

    def set_output_type(self, index, dtype):
        self._output_types[wanted(index, int, "index")] = wanted(dtype, Member, "dtype")
        call("layer.set_output_type", self._name, dtype)


class INetworkDefinition(Strict):
    def __init__(self, flags):
        self._flags, self._layers, self._in, self._out = flags, [], [], []

    num_layers = property(lambda self: len(self._layers))
    num_inputs = property(lambda self: len(self._in))

    def get_layer(self, index):
        return self._layers[wanted(index, int, "index")]

    def get_input(self, index):
        return self._in[wanted(index, int, "index")]


class ParserError(Strict):
    def __init__(self, code, desc, func, node):
        self._told = code, desc, func, node

    def code(self):
        return self._told[0]

    def desc(self):
        return self._told[1]

    def file(self):
        return "ModelImporter.cpp"

    def line(self):
        return 773

    def func(self):
        return self._told[2]

    def node(self):
        return self._told[3]


class OnnxParser(Strict):
    def __init__(self, network, logger):
        self._network = wanted(network, INetworkDefinition, "network")
        self._log, self._errors = made_logger(logger), []

    num_errors = property(lambda self: len(self._errors))

    def get_error(self, index):
        return self._errors[wanted(index, int, "index")]

    def parse(self, model, path=None):
        call("parser.parse", len(model))
        if not self._network._flags & 1 << int(NetworkDefinitionCreationFlag.EXPLICIT_BATCH):
            return self._fail(
                ErrorCode.INVALID_VALUE, "explicit batch dimension", "importModel", -1
            )
        try:
            return self._import(one_of(bytes(model), 7) or b"")
        except (ValueError, TypeError):
            text = "Failed to parse the ONNX model."
            return self._fail(
                ErrorCode.MODEL_DESERIALIZE_FAILED, text, "deserialize_onnx_model", -1
            )

    def _import(self, graph):
        weights = {one_of(value, 8).decode() for number, value in fields(graph) if number == 5}
        nodes = [value for number, value in fields(graph) if number == 1]
        for index, node in enumerate(nodes):
            name, op = ((one_of(node, number) or b"").decode() for number in (3, 4))
            inputs = [value.decode() for number, value in fields(node) if number == 1]
            outputs = [value.decode() for number, value in fields(node) if number == 2]
            if op not in KNOWN.split(" "):
                text = "No importer registered for op: " + op
                return self._fail(ErrorCode.UNSUPPORTED_NODE, text, "parseGraph", index)
            layer = ILayer(name or "node_of_" + outputs[0], op, inputs, outputs)
            self._network._layers.append(layer)
        for number, value in fields(graph):
            if number == 11 and one_of(value, 1).decode() not in weights:
                self._network._in.append(_tensor(value))
            elif number == 12:
                self._network._out.append(_tensor(value))
        return bool(nodes)

    def _fail(self, code, desc, func, node):
        self._errors.append(ParserError(code, desc, func, node))
        self._log.log(ILogger.ERROR, "In node %d (%s): %s" % (node, func, desc))
        return False


class ITimingCache(Strict):
    def __init__(self, content):
        self._content = content

    def serialize(self):
        return IHostMemory(b"tc" + __version__.encode() + b"\n" + self._content)

    def combine(self, input_cache, ignore_mismatch):
        return True


class IOptimizationProfile(Strict):
    def __init__(self):
        self._shapes = {}

    def set_shape(self, input, min, opt, max):
        self._shapes[wanted(input, str, "input")] = [tuple(min), tuple(opt), tuple(max)]


class IBuilderConfig(Strict):
    def __init__(self, log):
        self._log, self._flags, self._cache, self._profiles = log, {int(BuilderFlag.TF32)}, None, []
        self._workspace, self._verbosity, self._timings = 0, ProfilingVerbosity.DEFAULT, 1

    def _set(name, kind):
        def put(self, value):
            object.__setattr__(self, name, wanted(value, kind, name))
            call("config" + name, value)

        return property(lambda self: getattr(self, name), put)

    if VERSION < (10, 0):
        max_workspace_size = _set("_workspace", int)
    profiling_verbosity = _set("_verbosity", Member)
    avg_timing_iterations = _set("_timings", int)
    del _set

    def set_flag(self, flag):
        self._flags.add(int(wanted(flag, Member, "flag")))
        call("config.set_flag", flag)

    def clear_flag(self, flag):
        self._flags.discard(int(wanted(flag, Member, "flag")))
        call("config.clear_flag", flag)

    def create_timing_cache(self, serialized_timing_cache):
        given = bytes(serialized_timing_cache)
        head = b"tc" + __version__.encode() + b"\n"
        if given and not given.startswith(head):
            self._log.log(ILogger.ERROR, "Deserialize the cache: Magic tag does not match")
            return None
        return ITimingCache(given[len(head) :])

    def set_timing_cache(self, cache, ignore_mismatch):
        self._cache = wanted(cache, ITimingCache, "cache")
        call("config.set_timing_cache", len(cache._content), ignore_mismatch)
        return True

    def add_optimization_profile(self, profile):
        self._profiles.append(wanted(profile, IOptimizationProfile, "profile"))
        return len(self._profiles) - 1


if VERSION >= (8, 4):
    MemoryPoolType = enumeration("MemoryPoolType", "WORKSPACE DLA_MANAGED_SRAM")

    def _set_memory_pool_limit(self, pool, pool_size):
        wanted(pool, Member, "pool")
        self.max_workspace_size = wanted(pool_size, int, "pool_size")

    IBuilderConfig.set_memory_pool_limit = _set_memory_pool_limit


class Builder(Strict):
    def __init__(self, logger):
        self._log = made_logger(logger)
        call("Builder")

    platform_has_fast_fp16 = property(lambda self: compute() != "6.1")
    platform_has_fast_int8 = property(lambda self: compute() not in ("5.3", "6.2"))

    def create_network(self, flags=0):
        call("builder.create_network", wanted(flags, int, "flags"))
        return INetworkDefinition(flags)

    def create_builder_config(self):
        return IBuilderConfig(self._log)

    def create_optimization_profile(self):
        return IOptimizationProfile()

    def build_serialized_network(self, network, config):
        wanted(network, INetworkDefinition, "network")
        wanted(config, IBuilderConfig, "config")
        call("builder.build_serialized_network", os.getpid())
        time.sleep(float(os.environ.get("BOARDFIT_TENSORRT8_SLEEP", 0)))
        needs = int(os.environ.get("BOARDFIT_TENSORRT8_NEEDS", 1 << 62))
        if config._workspace >= abs(needs):
            if needs > 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return self._fail("[defaultAllocator.cpp] Cuda failure: out of memory")
        if not network._out:
            return self._fail("Network must have at least one output")
        if not config._workspace:
            name = network._layers[0].name
            return self._fail("Could not find any implementation for node " + name)
        if any(-1 in tensor.shape for tensor in network._in) and not config._profiles:
            return self._fail("Network has dynamic inputs, but no optimization profile was defined")
        quantized = any(layer._op == "QuantizeLinear" for layer in network._layers)
        if quantized and int(BuilderFlag.INT8) not in config._flags:
            return self._fail("Network has Q/DQ layers but the INT8 flag is not set")
        layers = _fuse(network._layers)
        if config._cache is not None:
            known = config._cache._content
            new = [one["Name"] for one in layers if one["Name"].encode() not in known]
            config._cache._content += "".join(name + "\n" for name in new).encode()
        plan = {
            "version": __version__,
            "compute": compute(),
            "layers": layers,
            "detailed": config._verbosity.name in ("DETAILED", "VERBOSE"),
            "tensors": [
                [tensor.name, tensor in network._in, tensor.shape, tensor.dtype.name]
                for tensor in network._in + network._out
            ],
        }
        return IHostMemory(b"ptrt" + json.dumps(plan).encode())

    def _fail(self, text):
        self._log.log(ILogger.ERROR, text)
        return None


def _fuse(layers):
    """Convolutions take what follows them alone; the first layer's input is laid out before."""
    found, open_at = [], {}
    for layer in layers:
        if layer._op in ("QuantizeLinear", "DequantizeLinear", "Constant", "Flatten"):
            continue
        before = next((open_at[name] for name in layer._inputs if name in open_at), None)
        if before is not None and layer._op in before["takes"]:
            before["Name"] += " + " + layer.name
        else:
            before = {"Name": layer.name, "takes": FUSED.get(layer._op, ()), "layer": layer}
            found.append(before)
        open_at = {name: before for name in layer._outputs}
    told = [{"Name": "Reformatting CopyNode for Input Tensor 0 to " + found[0]["Name"]}]
    for one in found:
        precision = one["layer"]._precision
        half = "Half" if precision == float16 else "Float"
        told.append(
            {
                "Name": one["Name"],
                "LayerType": one["layer"]._op,
                "Outputs": [{"Name": "out", "Format/Datatype": half}],
                "TacticName": "sm53_xmma_" + one["layer"]._op.lower(),
            }
        )
    return told
