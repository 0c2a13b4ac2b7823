"""Engines of TensorRT 8.0 to 11: built, cached, timed by CUDA events, profiled, run on inputs.

Only here is numpy imported; TensorRT itself is when it is first needed. ``Flavour`` holds the
functions that every engine module has; ``engine_tensorrt_rtx`` has them for TensorRT-RTX.
"""

import json
import statistics

import numpy

from . import board, cuda, runtimes, trt_api, trt_build, trt_names, trt_run

PROFILE_WARMUP_RUNS = 10
KINDS = {
    "FLOAT": numpy.float32,
    "HALF": numpy.float16,
    "INT8": numpy.int8,
    "UINT8": numpy.uint8,
    "BOOL": numpy.bool_,
    "INT32": numpy.int32,
    "INT64": numpy.int64,
}


def random_fill(seed):
    """A function that fills inputs: normal numbers from ``seed``, zeros for integers."""
    generator = numpy.random.RandomState(seed)

    def fill(tensor, buffer):
        kind = KINDS.get(tensor.kind)
        if kind is None:
            raise ValueError("input %s is %s, which cannot be made up" % (tensor.name, tensor.kind))
        view = numpy.frombuffer(buffer, kind)
        if issubclass(kind, numpy.floating):
            view[:] = generator.standard_normal(view.shape).astype(kind)
        else:
            view[:] = 0

    return fill


def profiler(trt):
    """A profiler whose ``rows`` are the layers' ``(name, seconds)`` since they were last taken."""

    class Kept(trt.IProfiler):
        def __init__(self):
            trt.IProfiler.__init__(self)
            self.rows = []

        def report_layer_time(self, layer_name, ms):
            self.rows.append((layer_name, ms * 1e-3))

    return Kept()


def layer_facts(trt, engine, context):
    """What the engine inspector tells of each layer, by name; {} where there is none (8.0)."""
    if not trt_api.features(trt)["layer_info"]:
        return {}
    inspector = engine.create_engine_inspector()
    inspector.execution_context = context
    told = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    try:
        layers = json.loads(told).get("Layers", [])
    except ValueError:
        return {}
    # An engine that was built without details lists names alone.
    return {layer["Name"]: layer for layer in layers if isinstance(layer, dict)}


def _precision(layer):
    """The data type of a layer's first output as the inspector words it, or ""."""
    outputs = layer.get("Outputs") or [{}]
    return outputs[0].get("Format/Datatype", "")


class Flavour:
    """The functions of an engine module for ``tensorrt`` or ``tensorrt_rtx``."""

    def __init__(self, name):
        self.name = name
        self.clock = trt_run.clock

    def version(self):
        """The runtime's version and what sets it apart, in the place of providers."""
        trt = trt_api.load(self.name)
        has = trt_api.features(trt)
        return trt.__version__, [name for name in sorted(has) if has[name]]

    def gpu(self):
        """The GPU as the wire has it; None where there is none that CUDA can use."""
        try:
            gpu = cuda.Cuda()
        except cuda.NoCuda:
            return None
        facts, (free, total) = gpu.facts(), gpu.memory()
        gpu.close()
        trt = trt_api.load(self.name)
        fp16 = int8 = None
        if trt_api.features(trt)["fast_precisions"]:
            builder = trt.Builder(trt_api.logger(trt))
            fp16, int8 = trt_api.fast_precisions(trt, builder, None)
        return {
            "name": facts["name"],
            "compute": facts["compute"],
            "fast_fp16": fp16,
            "fast_int8": int8,
            "total_bytes": total,
            "free_bytes": free,
        }

    def place(self, cache_dir):
        """Where engines are built: this runtime on this chip in the power mode in force."""
        # In a process of its own: a context here would hold memory that the build needs.
        compute = runtimes.probe("cuda").get("compute")
        mode = board.power_mode(board.Board())
        name = None if mode is None else mode["name"]
        return trt_build.Place(cache_dir, self.name, self.version()[0], compute, name)

    def build(self, network, build, folder, cache_dir, tell):
        """What is known of the engine of a network: see ``trt_build.engine``."""
        return trt_build.engine(self.place(cache_dir), network, build, folder, tell)

    def load(self, path, threads, seed, build=None):
        """A ``trt_run.Engine`` of a serialised engine with inputs for timing; the host's threads
        change nothing."""
        del threads
        trt = trt_api.load(self.name)
        options = trt_run.options_of(build or {})
        with open(path, "rb") as stream:
            plan = stream.read()
        gpu = trt_run.open_layer(options["cuda"])
        return trt_run.Engine(trt, plan, gpu, options, random_fill(seed))

    def profile(self, path, threads, seed, runs, folder, network=None, build=None):
        """Kernels in the order of execution, and whole runs: ``profile.result``.

        ``network`` is the ONNX file that the engine was built of, whose nodes the kernels are led
        back to. Layers are timed outside graphs: inside, CUDA before 11.1 cannot.
        """
        del folder
        engine = self.load(path, threads, seed, dict(build or {}, cuda_graph=False))
        try:
            for _ in range(PROFILE_WARMUP_RUNS):
                engine.run()
            trt = trt_api.load(self.name)
            facts = layer_facts(trt, engine.engine, engine.context)
            timer = profiler(trt)
            engine.context.profiler = timer
            rows, runs_s = [], []
            for _ in range(runs):
                engine.run()
                runs_s.append(engine.parts()[trt_run.PARTS.index("compute_s")])
                rows.append(timer.rows)
                timer.rows = []
        finally:
            engine.close()
        names = trt_names.of_network(network) if network else trt_names.Names([])
        return {"kernels": _kernels(rows, names, facts), "runs_s": runs_s}

    def infer(self, path, threads, inputs_path, input_name, outputs_path, progress, build=None):
        """Writes the first output for every input, batch by batch, to ``outputs_path`` (.npy)."""
        engine = self.load(path, threads, 0, dict(build or {}, transfers=True))
        try:
            found = _outputs(engine, inputs_path, input_name, progress)
        finally:
            engine.close()
        with open(outputs_path, "wb") as stream:
            numpy.save(stream, found, allow_pickle=False)


def _outputs(engine, inputs_path, input_name, progress):
    names = [engine.tensors[index].name for index in engine.inputs()]
    if len(names) != 1 or input_name not in (None, names[0]):
        raise ValueError(
            "inputs are for %s alone, but the network has inputs %s" % (input_name, sorted(names))
        )
    into, out = engine.inputs()[0], engine.outputs()[0]
    source, target = engine.tensors[into], engine.tensors[out]
    view = numpy.frombuffer(engine.buffer(into), KINDS[source.kind]).reshape(source.shape)
    result = numpy.frombuffer(engine.buffer(out), KINDS[target.kind]).reshape(target.shape)
    inputs = numpy.load(inputs_path, mmap_mode="r", allow_pickle=False)
    if inputs.shape[1:] != view.shape[1:]:
        raise ValueError(
            "the network wants inputs of shape %s, these are %s"
            % (list(view.shape[1:]), list(inputs.shape[1:]))
        )
    found = []
    for start in range(0, len(inputs), engine.batch):
        part = inputs[start : start + engine.batch]
        # The last batch may be short: what is left of the one before fills it, and is cut off.
        view[: len(part)] = part
        engine.run()
        found.append(result[: len(part)].copy())
        progress(min(start + engine.batch, len(inputs)), len(inputs))
    return numpy.concatenate(found)


def _kernels(rows, names, facts):
    """Kernels of all runs; the profiler calls layers in the same order every time."""
    layers = [name for name, _ in rows[0]] if rows else []
    if not layers or any([name for name, _ in row] != layers for row in rows):
        raise ValueError(
            "TensorRT's profiler named %d layers in the first of %d runs and others later: a "
            "network with loops or branches cannot be profiled" % (len(layers), len(rows))
        )
    kernels = []
    for index, name in enumerate(layers):
        samples_s = [row[index][1] for row in rows]
        layer = facts.get(name, {})
        metadata = layer.get("Metadata") or ""
        node = names.node(name, metadata)
        kernels.append(
            {
                "name": name,
                "op": "Reformat" if trt_names.is_reformat(name) else names.op(node),
                "node": node,
                "nodes": names.nodes(name, metadata),
                "serves": names.serves(name),
                "latency_s": statistics.median(samples_s),
                "samples_s": [round(value, 9) for value in samples_s],
                "provider": "TensorRT",
                "tactic": layer.get("TacticName") or layer.get("LayerType") or "",
                "precision": _precision(layer),
            }
        )
    return kernels


def is_serialised(path):
    """Whether a blob is an engine and no ONNX file, by the magic of TensorRT's and RTX's."""
    with open(path, "rb") as stream:
        return stream.read(4) in (b"ptrt", b"vtrt")


RUNTIME = "tensorrt"
_flavour = Flavour(RUNTIME)
clock = _flavour.clock
version, gpu, build, load = _flavour.version, _flavour.gpu, _flavour.build, _flavour.load
profile, infer = _flavour.profile, _flavour.infer
