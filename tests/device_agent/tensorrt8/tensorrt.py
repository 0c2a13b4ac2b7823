"""A stand-in for TensorRT's Python bindings, 8.0.1, 8.2.1 or 8.5.2, strict about how it is called.

Written from NVIDIA's Python API reference and bindings of those versions. A name, keyword, type or
order of calls that the documentation does not have raises. BOARDFIT_TENSORRT8 picks the version,
BOARDFIT_TENSORRT8_CALLS names a file to which every call is appended, BOARDFIT_TENSORRT8_NEEDS the
bytes of workspace that kill the process (a negative number: that fail the build).

What it cannot prove: that TensorRT fuses, names, rounds or times as this does; which tactics it
finds; that a network which parses here parses there; that memory suffices; that two threads, two
contexts or a real GPU's asynchrony are handled. Its engines compute nothing: element i of an output
is i + 1 times the first element of the input. Runs under Python 3.6 with the standard library.
"""

import ctypes
import json
import os
import signal

from tensorrt8_file import fields, one_of

__version__ = os.environ.get("BOARDFIT_TENSORRT8", "8.2.1.8")
_VERSION = tuple(int(part) for part in __version__.split(".")[:2])
_FUSED = {"Conv": ("Add", "Relu", "BatchNormalization"), "Gemm": ("Relu",)}
_KNOWN = (
    "Add AveragePool BatchNormalization Concat Constant Conv DequantizeLinear Flatten Gemm "
    "GlobalAveragePool Identity MatMul MaxPool Mul QuantizeLinear Relu Reshape Sigmoid Softmax"
)


def _call(name, *told):
    path = os.environ.get("BOARDFIT_TENSORRT8_CALLS")
    if path:
        with open(path, "a") as stream:
            stream.write(json.dumps([name] + [str(one) for one in told]) + "\n")


def _is(value, kind, what):
    # pybind11 takes no bool for a float, and nothing but an int for an int.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError("incompatible function arguments: %s is %r" % (what, type(value)))
    return value


class _Enum:
    """What pybind11 makes of an enumeration with arithmetic."""

    def __init__(self, owner, name, value):
        self._owner, self.name, self.value = owner, name, value

    def __int__(self):
        return self.value

    __index__ = __int__

    def __str__(self):
        return "%s.%s" % (self._owner, self.name)

    def __eq__(self, other):
        return isinstance(other, (_Enum, int)) and int(self) == int(other)

    def __le__(self, other):
        return int(self) <= int(other)

    def __hash__(self):
        return hash((self._owner, self.value))


def _enum(name, members, start=0):
    kind = type(name, (), {})
    for value, member in enumerate(members.split(), start):
        setattr(kind, member, _Enum(name, member, value))
    return kind


class _Strict:
    """No attribute but those of the class: pybind11's classes take no others."""

    _inner = ()

    def __setattr__(self, name, value):
        known = getattr(type(self), name, None)
        if not name.startswith("_") and not isinstance(known, property):
            raise AttributeError("%s has no attribute %s" % (type(self).__name__, name))
        object.__setattr__(self, name, value)


DataType = _enum("DataType", "FLOAT HALF INT8 INT32 BOOL")
float32, float16, int8 = DataType.FLOAT, DataType.HALF, DataType.INT8
int32 = DataType.INT32
_BYTES = {"FLOAT": 4, "HALF": 2, "INT8": 1, "INT32": 4, "BOOL": 1}
_ONNX_TYPES = {1: float32, 10: float16, 3: int8, 6: int32}
LayerType = _enum(
    "LayerType", "CONVOLUTION ACTIVATION POOLING ELEMENTWISE CONSTANT SHAPE SHUFFLE SCALE OTHER"
)
_LAYER_TYPES = {
    "Conv": "CONVOLUTION",
    "Relu": "ACTIVATION",
    "Sigmoid": "ACTIVATION",
    "Add": "ELEMENTWISE",
    "Mul": "ELEMENTWISE",
    "Constant": "CONSTANT",
    "MaxPool": "POOLING",
    "Flatten": "SHUFFLE",
    "QuantizeLinear": "SCALE",
    "DequantizeLinear": "SCALE",
}
ErrorCode = _enum(
    "ErrorCode",
    "SUCCESS INTERNAL_ERROR MEM_ALLOC_FAILED MODEL_DESERIALIZE_FAILED INVALID_VALUE INVALID_GRAPH "
    "INVALID_NODE UNSUPPORTED_GRAPH UNSUPPORTED_NODE",
)
NetworkDefinitionCreationFlag = _enum(
    "NetworkDefinitionCreationFlag", "EXPLICIT_BATCH EXPLICIT_PRECISION"
)
BuilderFlag = _enum(
    "BuilderFlag",
    "FP16 INT8 DEBUG GPU_FALLBACK STRICT_TYPES REFIT DISABLE_TIMING_CACHE TF32 SPARSE_WEIGHTS "
    "SAFETY_SCOPE"
    + (
        " OBEY_PRECISION_CONSTRAINTS PREFER_PRECISION_CONSTRAINTS DIRECT_IO REJECT_EMPTY_ALGORITHMS"
        if _VERSION >= (8, 2)
        else ""
    ),
)
ProfilingVerbosity = _enum(
    "ProfilingVerbosity",
    "LAYER_NAMES_ONLY DETAILED NONE DEFAULT VERBOSE"
    if _VERSION >= (8, 2)
    else "DEFAULT NONE VERBOSE",
)


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = (
        _Enum("Severity", name, value)
        for value, name in enumerate(["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"])
    )

    def __init__(self):
        self._made = True


class Logger(ILogger):
    def __init__(self, min_severity=ILogger.WARNING):
        ILogger.__init__(self)
        self.min_severity = min_severity

    def log(self, severity, msg):
        if severity <= self.min_severity:
            print("[TRT] [%s] %s" % (severity.name[0], msg))


def _logger(logger):
    if not getattr(_is(logger, ILogger, "logger"), "_made", False):
        raise TypeError("ILogger.__init__() must be called when overriding __init__")
    return logger


class IProfiler:
    def __init__(self):
        self._made = True


class IHostMemory(bytes):
    nbytes = property(len)


class ITensor(_Strict):
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
    return ITensor(one_of(info, 1).decode(), tuple(dims), _ONNX_TYPES[one_of(info, 2, 1, 1)])


class ILayer(_Strict):
    def __init__(self, name, op, inputs, outputs):
        self._name, self._op, self._inputs, self._outputs = name, op, inputs, outputs
        self._precision, self._output_types = None, {}

    name = property(lambda self: self._name)
    type = property(lambda self: getattr(LayerType, _LAYER_TYPES.get(self._op, "OTHER")))
    num_outputs = property(lambda self: len(self._outputs))

    @property
    def precision(self):
        return self._precision or float32

    @precision.setter
    def precision(self, value):
        self._precision = _is(value, _Enum, "precision")
        _call("layer.precision", self._name, value)

    def get_output(self, index):
        return ITensor(self._outputs[_is(index, int, "index")], (1,), float32)

    def set_output_type(self, index, dtype):
        self._output_types[_is(index, int, "index")] = _is(dtype, _Enum, "dtype")
        _call("layer.set_output_type", self._name, dtype)


class INetworkDefinition(_Strict):
    def __init__(self, flags):
        self._flags, self._layers, self._in, self._out = flags, [], [], []

    num_layers = property(lambda self: len(self._layers))
    num_inputs = property(lambda self: len(self._in))

    def get_layer(self, index):
        return self._layers[_is(index, int, "index")]

    def get_input(self, index):
        return self._in[_is(index, int, "index")]


class ParserError(_Strict):
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


class OnnxParser(_Strict):
    def __init__(self, network, logger):
        self._network = _is(network, INetworkDefinition, "network")
        self._log, self._errors = _logger(logger), []

    num_errors = property(lambda self: len(self._errors))

    def get_error(self, index):
        return self._errors[_is(index, int, "index")]

    def parse(self, model, path=None):
        _call("parser.parse", len(model))
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
            if op not in _KNOWN.split(" "):
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


class ITimingCache(_Strict):
    def __init__(self, content):
        self._content = content

    def serialize(self):
        return IHostMemory(b"tc" + __version__.encode() + b"\n" + self._content)

    def combine(self, input_cache, ignore_mismatch):
        return True


class IOptimizationProfile(_Strict):
    def __init__(self):
        self._shapes = {}

    def set_shape(self, input, min, opt, max):
        self._shapes[_is(input, str, "input")] = [tuple(min), tuple(opt), tuple(max)]


class IBuilderConfig(_Strict):
    def __init__(self, log):
        self._log, self._flags, self._cache, self._profiles = log, {int(BuilderFlag.TF32)}, None, []
        self._workspace, self._verbosity, self._timings = 0, ProfilingVerbosity.DEFAULT, 1

    def _set(name, kind):
        def put(self, value):
            object.__setattr__(self, name, _is(value, kind, name))
            _call("config" + name, value)

        return property(lambda self: getattr(self, name), put)

    if _VERSION < (10, 0):
        max_workspace_size = _set("_workspace", int)
    profiling_verbosity = _set("_verbosity", _Enum)
    avg_timing_iterations = _set("_timings", int)
    del _set

    def set_flag(self, flag):
        self._flags.add(int(_is(flag, _Enum, "flag")))
        _call("config.set_flag", flag)

    def clear_flag(self, flag):
        self._flags.discard(int(_is(flag, _Enum, "flag")))
        _call("config.clear_flag", flag)

    def create_timing_cache(self, serialized_timing_cache):
        given = bytes(serialized_timing_cache)
        head = b"tc" + __version__.encode() + b"\n"
        if given and not given.startswith(head):
            self._log.log(ILogger.ERROR, "Deserialize the cache: Magic tag does not match")
            return None
        return ITimingCache(given[len(head) :])

    def set_timing_cache(self, cache, ignore_mismatch):
        self._cache = _is(cache, ITimingCache, "cache")
        _call("config.set_timing_cache", len(cache._content), ignore_mismatch)
        return True

    def add_optimization_profile(self, profile):
        self._profiles.append(_is(profile, IOptimizationProfile, "profile"))
        return len(self._profiles) - 1


if _VERSION >= (8, 4):
    MemoryPoolType = _enum("MemoryPoolType", "WORKSPACE DLA_MANAGED_SRAM")

    def _set_memory_pool_limit(self, pool, pool_size):
        _is(pool, _Enum, "pool")
        self.max_workspace_size = _is(pool_size, int, "pool_size")

    IBuilderConfig.set_memory_pool_limit = _set_memory_pool_limit


def _compute():
    return os.environ.get("BOARDFIT_COMPUTE", "5.3")


class Builder(_Strict):
    def __init__(self, logger):
        self._log = _logger(logger)
        _call("Builder")

    platform_has_fast_fp16 = property(lambda self: _compute() != "6.1")
    platform_has_fast_int8 = property(lambda self: _compute() not in ("5.3", "6.2"))

    def create_network(self, flags=0):
        _call("builder.create_network", _is(flags, int, "flags"))
        return INetworkDefinition(flags)

    def create_builder_config(self):
        return IBuilderConfig(self._log)

    def create_optimization_profile(self):
        return IOptimizationProfile()

    def build_serialized_network(self, network, config):
        _is(network, INetworkDefinition, "network")
        _is(config, IBuilderConfig, "config")
        _call("builder.build_serialized_network")
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
            "compute": _compute(),
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
            before = {"Name": layer.name, "takes": _FUSED.get(layer._op, ()), "layer": layer}
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


class Runtime(_Strict):
    def __init__(self, logger):
        self._log = _logger(logger)
        _call("Runtime")

    def deserialize_cuda_engine(self, serialized_engine):
        given = bytes(serialized_engine)
        try:
            plan = json.loads(given[4:].decode()) if given[:4] == b"ptrt" else None
        except ValueError:
            plan = None
        if plan is None or plan["version"] != __version__ or plan["compute"] != _compute():
            text = "Serialization assertion stdVersionRead == serializationVersion failed."
            self._log.log(ILogger.ERROR, "1: [stdArchiveReader.cpp] Error Code 1: " + text)
            return None
        _call("runtime.deserialize_cuda_engine")
        return ICudaEngine(plan)


class ICudaEngine(_Strict):
    def __init__(self, plan):
        self._plan = plan

    num_layers = property(lambda self: len(self._plan["layers"]))
    num_bindings = property(lambda self: len(self._plan["tensors"]))

    def _row(self, index):
        return self._plan["tensors"][_is(index, int, "index")]

    def get_binding_name(self, index):
        return self._row(index)[0]

    def binding_is_input(self, index):
        return self._row(index)[1]

    def get_binding_shape(self, index):
        return tuple(self._row(index)[2])

    def get_binding_dtype(self, index):
        return getattr(DataType, self._row(index)[3])

    def create_execution_context(self):
        return IExecutionContext(self)

    def _engine_inspector(self):
        return EngineInspector(self)


class IExecutionContext(_Strict):
    def __init__(self, engine):
        self._engine, self._profiler, self._shapes, self._addresses = engine, None, {}, {}

    def _set_profiler(self, value):
        if not getattr(_is(value, IProfiler, "profiler"), "_made", False):
            raise TypeError("IProfiler.__init__() must be called when overriding __init__")
        object.__setattr__(self, "_profiler", value)

    profiler = property(lambda self: self._profiler, _set_profiler)
    engine = property(lambda self: self._engine)

    def set_binding_shape(self, binding, shape):
        if not self._engine.binding_is_input(binding):
            return False
        self._shapes[binding] = tuple(shape)
        return True

    def get_binding_shape(self, binding):
        shape = self._shapes.get(binding, self._engine.get_binding_shape(binding))
        batch = [size[0] for size in self._shapes.values()][:1]
        return tuple(batch[0] if size == -1 and batch else size for size in shape)

    def execute_async_v2(self, bindings, stream_handle, input_consumed=None):
        if not isinstance(bindings, list) or len(bindings) != self._engine.num_bindings:
            raise TypeError("bindings are a list of %d integers" % self._engine.num_bindings)
        cudart = ctypes.CDLL(os.environ["BOARDFIT_CUDART"])
        if not cudart.boardfit_is_stream(ctypes.c_void_p(_is(stream_handle, int, "stream_handle"))):
            return False
        views = []
        for number, address in enumerate(bindings):
            size = 1
            for dim in self.get_binding_shape(number):
                size *= dim
            kind = self._engine._row(number)[3]
            held = ctypes.c_size_t(size * _BYTES[kind])
            if size < 0 or not cudart.boardfit_is_device(
                ctypes.c_void_p(_is(address, int, "binding")), held
            ):
                return False
            views.append((size, address, kind))
        self._compute(views)
        if self._profiler is not None:
            for number, layer in enumerate(self._engine._plan["layers"]):
                self._profiler.report_layer_time(layer["Name"], 0.25 * (number + 1))
        return True

    def _compute(self, views):
        first = None
        for number, (size, address, kind) in enumerate(views):
            if kind != "FLOAT":
                continue
            values = (ctypes.c_float * size).from_address(address)
            if self._engine.binding_is_input(number):
                first = values[0]
            else:
                values[:] = [(index + 1) * first for index in range(size)]


if _VERSION >= (8, 2):
    LayerInformationFormat = _enum("LayerInformationFormat", "ONELINE JSON")
    ICudaEngine.create_engine_inspector = ICudaEngine._engine_inspector

    class EngineInspector(_Strict):
        def __init__(self, engine):
            self._engine, self._context = engine, None

        def _set_context(self, value):
            object.__setattr__(self, "_context", _is(value, IExecutionContext, "context"))

        execution_context = property(lambda self: self._context, _set_context)

        def get_engine_information(self, format):
            _is(format, _Enum, "format")
            layers = self._engine._plan["layers"]
            detailed = self._engine._plan["detailed"]
            return json.dumps({"Layers": layers if detailed else [one["Name"] for one in layers]})


if _VERSION >= (8, 5):
    TensorIOMode = _enum("TensorIOMode", "NONE INPUT OUTPUT")

    def _number(engine, name):
        names = [row[0] for row in engine._plan["tensors"]]
        return names.index(_is(name, str, "name"))

    def _named(function):
        return lambda self, name: function(self, _number(getattr(self, "_engine", self), name))

    ICudaEngine.num_io_tensors = property(lambda self: len(self._plan["tensors"]))
    ICudaEngine.get_tensor_name = ICudaEngine.get_binding_name
    ICudaEngine.get_tensor_shape = _named(ICudaEngine.get_binding_shape)
    ICudaEngine.get_tensor_dtype = _named(ICudaEngine.get_binding_dtype)
    ICudaEngine.get_tensor_mode = _named(
        lambda self, number: (
            TensorIOMode.INPUT if self.binding_is_input(number) else TensorIOMode.OUTPUT
        )
    )
    IExecutionContext.get_tensor_shape = _named(IExecutionContext.get_binding_shape)

    def _set_input_shape(self, name, shape):
        return self.set_binding_shape(_number(self._engine, name), shape)

    def _set_tensor_address(self, name, memory):
        self._addresses[_number(self._engine, name)] = _is(memory, int, "memory")
        return True

    def _execute_async_v3(self, stream_handle):
        bindings = [self._addresses[number] for number in range(self._engine.num_bindings)]
        return self.execute_async_v2(bindings, stream_handle)

    IExecutionContext.set_input_shape = _set_input_shape
    IExecutionContext.set_tensor_address = _set_tensor_address
    IExecutionContext.execute_async_v3 = _execute_async_v3
