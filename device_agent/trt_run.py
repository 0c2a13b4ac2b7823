"""A TensorRT engine with its buffers, run and timed as trtexec defines its times.

GPU compute is what lies between two events around the enqueueing, copies in and out lie between two
events each, all on the GPU's clock. Enqueueing is timed on the host. None of these is part of
another number that is reported with it: the whole call, on the host's clock, is the caller's.
Source: "Performance Benchmarking using trtexec" in TensorRT's developer guide.
"""

import ctypes
import time
from typing import NamedTuple

from . import trt_api

Tensor = NamedTuple("Tensor", [("name", str), ("is_input", bool), ("shape", tuple), ("kind", str)])
# Bytes of one element, by the name of TensorRT's data type.
SIZES = {
    "FLOAT": 4,
    "HALF": 2,
    "BF16": 2,
    "INT8": 1,
    "UINT8": 1,
    "BOOL": 1,
    "INT32": 4,
    "INT64": 8,
}
PARTS = ("h2d_s", "compute_s", "d2h_s", "enqueue_s")
# Times of the GPU are good to half a microsecond; more digits only fill the wire.
DIGITS = 8
# What the wire's "build" says of running, with what is meant where it is left out.
OPTIONS = {"cuda_graph": False, "spin_wait": False, "transfers": True, "cuda": "ctypes"}

clock = time.perf_counter


class EngineRefused(Exception):
    """TensorRT does not take a serialised engine: it is of another version or chip, or damaged."""


def options_of(build):
    """The options of running among those of a job."""
    return {name: build.get(name, default) for name, default in OPTIONS.items()}


def open_layer(name):
    """The GPU through ``ctypes`` or ``pycuda``."""
    if name == "pycuda":
        try:
            from . import cuda_pycuda
        except ImportError as error:
            raise ValueError("pycuda is not there for this Python (%s): use ctypes" % error)
        return cuda_pycuda.Cuda()
    from . import cuda

    return cuda.Cuda()


class _ByName:
    """Tensors since 8.5."""

    def __init__(self, trt, engine, context):
        self._trt, self._engine, self._context = trt, engine, context

    def tensors(self):
        found = []
        for number in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(number)
            is_input = self._engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT
            shape = tuple(self._engine.get_tensor_shape(name))
            if is_input and -1 in shape:
                shape = (1,) + shape[1:]
                self._context.set_input_shape(name, shape)
            found.append((name, is_input, self._engine.get_tensor_dtype(name).name))
        return [
            Tensor(name, is_input, tuple(self._context.get_tensor_shape(name)), kind)
            for name, is_input, kind in found
        ]

    def bind(self, tensors, addresses, stream):
        for tensor, address in zip(tensors, addresses):  # noqa: B905 (strict= is Python 3.10)
            self._context.set_tensor_address(tensor.name, address)
        return lambda: self._context.execute_async_v3(stream)


class _ByNumber:
    """Bindings up to 8.4."""

    def __init__(self, trt, engine, context):
        del trt
        self._engine, self._context = engine, context

    def tensors(self):
        numbers = range(self._engine.num_bindings)
        for number in numbers:
            shape = tuple(self._engine.get_binding_shape(number))
            if self._engine.binding_is_input(number) and -1 in shape:
                self._context.set_binding_shape(number, (1,) + shape[1:])
        return [
            Tensor(
                self._engine.get_binding_name(number),
                self._engine.binding_is_input(number),
                tuple(self._context.get_binding_shape(number)),
                self._engine.get_binding_dtype(number).name,
            )
            for number in numbers
        ]

    def bind(self, tensors, addresses, stream):
        del tensors
        bindings = list(addresses)
        return lambda: self._context.execute_async_v2(bindings, stream)


def size_bytes(tensor):
    """Bytes of a tensor; ``ValueError`` where its kind or its shape is none that can be filled."""
    if tensor.kind not in SIZES:
        raise ValueError("tensor %s is %s, which cannot be made up" % (tensor.name, tensor.kind))
    total = SIZES[tensor.kind]
    for size in tensor.shape:
        if size < 0:
            raise ValueError(
                "tensor %s has shape %s: export the network with fixed sizes (only the batch may "
                "vary)" % (tensor.name, list(tensor.shape))
            )
        total *= size
    return total


class Engine:
    """A deserialised engine that is ready to run; ``gpu`` is closed with it.

    ``fill(tensor, buffer)`` writes an input's content into a ``ctypes`` buffer.
    """

    PARTS = PARTS

    def __init__(self, trt, plan, gpu, options, fill):
        self._trt, self._gpu, self._options = trt, gpu, options
        self._log = trt_api.logger(trt)
        self._runtime = trt.Runtime(self._log)
        self.engine = self._runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            gpu.close()
            raise EngineRefused(
                "%s does not take this engine: %s; engines do not travel between versions or "
                "chips, build it here" % (trt_api.title(trt), self._log.errors() or "no reason")
            )
        self.context = self.engine.create_execution_context()
        if self.context is None:
            gpu.close()
            raise MemoryError("no memory for the engine's context: %s" % self._log.errors())
        self.layers = self.engine.num_layers
        self._stream = gpu.stream()
        self._events = [gpu.event(spin=options["spin_wait"]) for _ in range(4)]
        named = trt_api.features(trt)["named_tensors"]
        binding = (_ByName if named else _ByNumber)(trt, self.engine, self.context)
        self.tensors = binding.tensors()
        self._sizes = [size_bytes(tensor) for tensor in self.tensors]
        self._device = [gpu.allocate(size) for size in self._sizes]
        self._host = [gpu.pin(size) for size in self._sizes]
        self._execute = binding.bind(self.tensors, self._device, self._stream)
        for index in self.inputs():
            fill(self.tensors[index], self.buffer(index))
            self._copy_in(index)
        gpu.synchronise(self._stream)
        first = self.tensors[self.inputs()[0]].shape if self.inputs() else ()
        self.batch = first[0] if first else 1
        self._enqueue_s = 0.0
        self._work = self._enqueue
        if options["cuda_graph"]:
            self._enqueue()  # the first call sets up what a graph must not
            gpu.synchronise(self._stream)
            graph = gpu.capture(self._stream, self._enqueue)
            self._work = lambda: gpu.launch(graph, self._stream)

    def inputs(self):
        """Numbers of the input tensors."""
        return [number for number, tensor in enumerate(self.tensors) if tensor.is_input]

    def outputs(self):
        """Numbers of the output tensors."""
        return [number for number, tensor in enumerate(self.tensors) if not tensor.is_input]

    def buffer(self, index):
        """A tensor's page-locked host memory."""
        return (ctypes.c_ubyte * self._sizes[index]).from_address(self._host[index])

    def _enqueue(self):
        if not self._execute():
            raise RuntimeError("TensorRT did not enqueue the engine: %s" % self._log.errors())

    def _copy_in(self, index):
        sizes, device, host = self._sizes, self._device, self._host
        self._gpu.copy_in(device[index], host[index], sizes[index], self._stream)

    def run(self):
        """One inference, copies and all; returns when the GPU is done."""
        gpu, stream, copies = self._gpu, self._stream, self._options["transfers"]
        begun, ready, computed, ended = self._events
        gpu.record(begun, stream)
        for index in self.inputs() if copies else ():
            self._copy_in(index)
        gpu.record(ready, stream)
        start_s = clock()
        self._work()
        self._enqueue_s = clock() - start_s
        gpu.record(computed, stream)
        for index in self.outputs() if copies else ():
            gpu.copy_out(self._host[index], self._device[index], self._sizes[index], stream)
        gpu.record(ended, stream)
        gpu.wait(ended)

    def parts(self):
        """What the latest run was made of, in the order of ``PARTS``, in seconds."""
        begun, ready, computed, ended = self._events
        pairs = ((begun, ready), (ready, computed), (computed, ended))
        found = [self._gpu.elapsed_s(first, second) for first, second in pairs]
        if not self._options["transfers"]:
            # Two events in a row are a microsecond apart, and no copy.
            found[0] = found[2] = 0.0
        return [round(value, DIGITS) for value in found + [self._enqueue_s]]

    def close(self):
        """Free the runtime's memory."""
        self._execute = self._work = self.context = self.engine = self._runtime = None
        self._gpu.close()
