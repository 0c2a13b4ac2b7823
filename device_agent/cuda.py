"""Device memory, streams, events and graphs through ctypes on libcudart: a dozen calls.

``cuda_pycuda.Cuda`` has the same interface. Addresses, streams, events and graphs are integers, so
that TensorRT's bindings take them as they are. Names, arguments and return codes are those of the
CUDA Runtime API's reference; its calls return 0 or a code, and each code here becomes an exception.
"""

import contextlib
import ctypes
import glob
import os
import sys
from ctypes import POINTER, c_char_p, c_float, c_int, c_size_t, c_uint, c_ulonglong, c_void_p

# Names the library where it lies at an unusual place.
VARIABLE = "BOARDFIT_CUDART"
# JetPack 4 to 6 and desktop toolkits; the linker knows most of them under one of these names.
NAMES = ("libcudart.so",) + tuple(
    "libcudart.so." + version for version in ("13", "12", "11.0", "10.2")
)
PLACES = (
    "/usr/local/cuda/lib64/libcudart.so*",
    "/usr/local/cuda-*/lib64/libcudart.so*",
    "/usr/local/cuda-*/targets/*/lib/libcudart.so*",
)
# Where NVIDIA's Python packages put it.
PACKAGED = "nvidia/*/lib/libcudart.so*"

HANDLE = POINTER(c_void_p)
PROTOTYPES = {
    "cudaGetErrorName": (c_int,),
    "cudaGetErrorString": (c_int,),
    "cudaRuntimeGetVersion": (POINTER(c_int),),
    "cudaDriverGetVersion": (POINTER(c_int),),
    "cudaGetDeviceCount": (POINTER(c_int),),
    "cudaSetDevice": (c_int,),
    "cudaDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cudaGetDeviceProperties": (c_char_p, c_int),
    "cudaMemGetInfo": (POINTER(c_size_t), POINTER(c_size_t)),
    "cudaMalloc": (HANDLE, c_size_t),
    "cudaFree": (c_void_p,),
    "cudaHostAlloc": (HANDLE, c_size_t, c_uint),
    "cudaFreeHost": (c_void_p,),
    "cudaMemcpyAsync": (c_void_p, c_void_p, c_size_t, c_int, c_void_p),
    "cudaStreamCreateWithFlags": (HANDLE, c_uint),
    "cudaStreamSynchronize": (c_void_p,),
    "cudaStreamDestroy": (c_void_p,),
    "cudaEventCreateWithFlags": (HANDLE, c_uint),
    "cudaEventRecord": (c_void_p, c_void_p),
    "cudaEventSynchronize": (c_void_p,),
    "cudaEventElapsedTime": (POINTER(c_float), c_void_p, c_void_p),
    "cudaEventDestroy": (c_void_p,),
}
# Since CUDA 10.1; 12 changed cudaGraphInstantiate, and 11.4 brought a name that stayed as it is.
GRAPHS = {
    "cudaStreamBeginCapture": (c_void_p, c_int),
    "cudaStreamEndCapture": (c_void_p, HANDLE),
    "cudaGraphInstantiate": (HANDLE, c_void_p, HANDLE, c_char_p, c_size_t),
    "cudaGraphInstantiateWithFlags": (HANDLE, c_void_p, c_ulonglong),
    "cudaGraphLaunch": (c_void_p, c_void_p),
    "cudaGraphExecDestroy": (c_void_p,),
    "cudaGraphDestroy": (c_void_p,),
}
WITH_FLAGS = 11040
# cudaDevAttrMultiProcessorCount and cudaDevAttrComputeCapabilityMajor, ...Minor.
PROCESSORS, MAJOR, MINOR = 16, 75, 76
# cudaDeviceProp begins with the name, in 256 bytes; it had 1032 in CUDA 12 and grows.
NAME_BYTES, PROPERTIES_BYTES = 256, 16384
# cudaMemcpyHostToDevice and cudaMemcpyDeviceToHost.
TO_DEVICE, TO_HOST = 1, 2
# A stream of its own, which waits for nothing on the default stream.
NON_BLOCKING = 1
# Whoever waits for an event sleeps instead of spinning.
BLOCKING_SYNC = 1
# Only this thread's calls may break a capture.
THREAD_LOCAL = 1


# What to look at where the library is there and no GPU answers it.
LOOK = "is there an NVIDIA GPU, and its driver loaded and as new as CUDA (nvidia-smi)?"


class NoCuda(Exception):
    """There is no CUDA on this machine; the message is one line that says what is missing."""


class CudaError(Exception):
    """A call of the CUDA runtime failed; ``call`` and ``code`` say which and how."""

    def __init__(self, call, code, name, text):
        super().__init__("%s: %s (%d, %s)" % (call, text, code, name))
        self.call, self.code, self.text = call, code, text


def candidates():
    """Names and paths of libcudart, the likeliest first."""
    named = os.environ.get(VARIABLE)
    if named:
        return [named]
    found = list(NAMES)
    for pattern in PLACES + tuple(os.path.join(path, PACKAGED) for path in sys.path):
        found += sorted(glob.glob(pattern), reverse=True)
    return found


def open_library(names=None):
    """libcudart with its calls' types set; ``NoCuda`` where it is not to be found."""
    for name in candidates() if names is None else names:
        try:
            library = ctypes.CDLL(name)
            for call, types in PROTOTYPES.items():
                getattr(library, call).argtypes = types
        except (OSError, AttributeError):
            continue
        for call, types in GRAPHS.items():
            with contextlib.suppress(AttributeError):
                getattr(library, call).argtypes = types
        library.cudaGetErrorName.restype = library.cudaGetErrorString.restype = c_char_p
        return library
    raise NoCuda(
        "no libcudart.so was found: install CUDA's runtime (JetPack has it), "
        "or name it with %s" % VARIABLE
    )


class Cuda:
    """The first GPU; ``close`` gives back all that was asked for."""

    layer = "ctypes"

    def __init__(self, library=None):
        self._library = open_library() if library is None else library
        self._held = {}
        count = c_int()
        try:
            self._call("cudaGetDeviceCount", ctypes.byref(count))
        except CudaError as error:
            raise NoCuda("libcudart is there, but no GPU answers it: %s; %s" % (error.text, LOOK))
        if not count.value:
            raise NoCuda("libcudart is there, but it finds no GPU; %s" % LOOK)
        self._call("cudaSetDevice", 0)

    def _call(self, name, *arguments):
        code = getattr(self._library, name)(*arguments)
        if code:
            told = (self._library.cudaGetErrorName(code), self._library.cudaGetErrorString(code))
            raise CudaError(name, code, *[(text or b"").decode() for text in told])

    def _new(self, call, free, *arguments):
        handle = c_void_p()
        self._call(call, ctypes.byref(handle), *arguments)
        self._held[handle.value] = free
        return handle.value

    def _number(self, call, *arguments):
        number = c_int()
        self._call(call, ctypes.byref(number), *arguments)
        return number.value

    def facts(self):
        """Name, versions as 10020 (10.2), compute capability as ``5.3``, multiprocessors."""
        properties = ctypes.create_string_buffer(PROPERTIES_BYTES)
        self._call("cudaGetDeviceProperties", properties, 0)
        major, minor, processors = (
            self._number("cudaDeviceGetAttribute", attribute, 0)
            for attribute in (MAJOR, MINOR, PROCESSORS)
        )
        return {
            "name": properties.raw[:NAME_BYTES].partition(b"\0")[0].decode(errors="replace"),
            "runtime": self._number("cudaRuntimeGetVersion"),
            "driver": self._number("cudaDriverGetVersion"),
            "compute": "%d.%d" % (major, minor),
            "processors": processors,
        }

    def memory(self):
        """Bytes of the device's memory that are free, and all of them."""
        free, total = c_size_t(), c_size_t()
        self._call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def allocate(self, size_bytes):
        """Address of device memory; never 0, however small it is."""
        return self._new("cudaMalloc", "cudaFree", max(1, size_bytes))

    def pin(self, size_bytes):
        """Address of page-locked host memory, from and to which copies are asynchronous."""
        return self._new("cudaHostAlloc", "cudaFreeHost", max(1, size_bytes), 0)

    def stream(self):
        """A new stream."""
        return self._new("cudaStreamCreateWithFlags", "cudaStreamDestroy", NON_BLOCKING)

    def event(self, spin=False):
        """A new event; ``wait`` for it spins, or sleeps, which leaves the CPU to others."""
        flags = 0 if spin else BLOCKING_SYNC
        return self._new("cudaEventCreateWithFlags", "cudaEventDestroy", flags)

    def record(self, event, stream):
        """Have the stream mark the event when it comes to it."""
        self._call("cudaEventRecord", event, stream)

    def wait(self, event):
        """Return when the event has been marked."""
        self._call("cudaEventSynchronize", event)

    def elapsed_s(self, first, second):
        """Seconds between two marked events, on the GPU's clock (0.5 us fine)."""
        elapsed_ms = c_float()
        self._call("cudaEventElapsedTime", ctypes.byref(elapsed_ms), first, second)
        return elapsed_ms.value * 1e-3

    def copy_in(self, device, host, size_bytes, stream):
        """Have the stream copy from host to device."""
        self._call("cudaMemcpyAsync", device, host, size_bytes, TO_DEVICE, stream)

    def copy_out(self, host, device, size_bytes, stream):
        """Have the stream copy from device to host."""
        self._call("cudaMemcpyAsync", host, device, size_bytes, TO_HOST, stream)

    def synchronise(self, stream):
        """Return when the stream has nothing left to do."""
        self._call("cudaStreamSynchronize", stream)

    def capture(self, stream, work):
        """A graph of what ``work()`` gives the stream to do, for ``launch``; ``CudaError`` if it
        does what a graph cannot hold."""
        self._call("cudaStreamBeginCapture", stream, THREAD_LOCAL)
        graph, code = c_void_p(), 0
        try:
            try:
                work()
            finally:
                # Ended even where the work failed: the stream could do nothing else any more.
                code = self._library.cudaStreamEndCapture(stream, ctypes.byref(graph))
            if code:
                text = "what the engine does cannot be captured"
                raise CudaError("cudaStreamEndCapture", code, "", text)
            if self._number("cudaRuntimeGetVersion") >= WITH_FLAGS:
                return self._new_graph("cudaGraphInstantiateWithFlags", graph, 0)
            return self._new_graph("cudaGraphInstantiate", graph, None, None, 0)
        finally:
            if graph.value:
                self._call("cudaGraphDestroy", graph)

    def _new_graph(self, call, graph, *arguments):
        return self._new(call, "cudaGraphExecDestroy", graph, *arguments)

    def launch(self, graph, stream):
        """Have the stream do what the graph holds."""
        self._call("cudaGraphLaunch", graph, stream)

    def close(self):
        """Free everything, the latest first."""
        for handle, free in reversed(list(self._held.items())):
            del self._held[handle]
            self._call(free, handle)
