"""The stand-in's runtime, engine, execution context and inspector."""

import ctypes
import json
import os

from tensorrt8_base import (
    BYTES,
    VERSION,
    DataType,
    ILogger,
    IProfiler,
    Member,
    Strict,
    __version__,
    call,
    compute,
    enumeration,
    made_logger,
    wanted,
)


class Runtime(Strict):
    def __init__(self, logger):
        self._log = made_logger(logger)
        call("Runtime")

    def deserialize_cuda_engine(self, serialized_engine):
        given = bytes(serialized_engine)
        try:
            plan = json.loads(given[4:].decode()) if given[:4] == b"ptrt" else None
        except ValueError:
            plan = None
        if plan is None or plan["version"] != __version__ or plan["compute"] != compute():
            text = "Serialization assertion stdVersionRead == serializationVersion failed."
            self._log.log(ILogger.ERROR, "1: [stdArchiveReader.cpp] Error Code 1: " + text)
            return None
        call("runtime.deserialize_cuda_engine")
        return ICudaEngine(plan)


class ICudaEngine(Strict):
    def __init__(self, plan):
        self._plan = plan

    num_layers = property(lambda self: len(self._plan["layers"]))
    num_bindings = property(lambda self: len(self._plan["tensors"]))

    def _row(self, index):
        return self._plan["tensors"][wanted(index, int, "index")]

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


class IExecutionContext(Strict):
    def __init__(self, engine):
        self._engine, self._profiler, self._shapes, self._addresses = engine, None, {}, {}

    def _set_profiler(self, value):
        if not getattr(wanted(value, IProfiler, "profiler"), "_made", False):
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
        if not cudart.boardfit_is_stream(
            ctypes.c_void_p(wanted(stream_handle, int, "stream_handle"))
        ):
            return False
        views = []
        for number, address in enumerate(bindings):
            size = 1
            for dim in self.get_binding_shape(number):
                size *= dim
            kind = self._engine._row(number)[3]
            held = ctypes.c_size_t(size * BYTES[kind])
            if size < 0 or not cudart.boardfit_is_device(
                ctypes.c_void_p(wanted(address, int, "binding")), held
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


if VERSION >= (8, 2):
    LayerInformationFormat = enumeration("LayerInformationFormat", "ONELINE JSON")
    ICudaEngine.create_engine_inspector = ICudaEngine._engine_inspector

    class EngineInspector(Strict):
        def __init__(self, engine):
            self._engine, self._context = engine, None

        def _set_context(self, value):
            object.__setattr__(self, "_context", wanted(value, IExecutionContext, "context"))

        execution_context = property(lambda self: self._context, _set_context)

        def get_engine_information(self, format):
            wanted(format, Member, "format")
            layers = self._engine._plan["layers"]
            detailed = self._engine._plan["detailed"]
            return json.dumps({"Layers": layers if detailed else [one["Name"] for one in layers]})


if VERSION >= (8, 5):
    TensorIOMode = enumeration("TensorIOMode", "NONE INPUT OUTPUT")

    def _number(engine, name):
        names = [row[0] for row in engine._plan["tensors"]]
        return names.index(wanted(name, str, "name"))

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
        self._addresses[_number(self._engine, name)] = wanted(memory, int, "memory")
        return True

    def _execute_async_v3(self, stream_handle):
        bindings = [self._addresses[number] for number in range(self._engine.num_bindings)]
        return self.execute_async_v2(bindings, stream_handle)

    IExecutionContext.set_input_shape = _set_input_shape
    IExecutionContext.set_tensor_address = _set_tensor_address
    IExecutionContext.execute_async_v3 = _execute_async_v3
