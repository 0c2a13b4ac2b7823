"""The interface of ``cuda.Cuda`` through pycuda, for boards that have it and users who ask for it.

pycuda works with objects where the other layer has integers; a dictionary for each kind translates.
Written from pycuda's reference; tests run it where a GPU is, and nowhere else.
"""

import pycuda.driver as driver

from .cuda import LOOK, CudaError, NoCuda


class Cuda:
    """The first GPU in a context of pycuda's; ``close`` gives back all that was asked for."""

    layer = "pycuda"

    def __init__(self):
        try:
            driver.init()
            if not driver.Device.count():
                raise NoCuda("pycuda is there, but it finds no GPU; %s" % LOOK)
            self._device = driver.Device(0)
        except driver.Error as error:
            raise NoCuda("pycuda is there, but no GPU answers it: %s; %s" % (error, LOOK))
        # The primary context is the one that the runtime API, and so TensorRT, uses.
        if hasattr(self._device, "retain_primary_context"):
            self._context = self._device.retain_primary_context()
            self._context.push()
        else:
            self._context = self._device.make_context()
        self._memory, self._pinned, self._streams, self._events = {}, {}, {}, {}

    def facts(self):
        """Name, versions as 10020 (10.2), compute capability as ``5.3``, multiprocessors."""
        major, minor, patch = driver.get_version()
        processors = driver.device_attribute.MULTIPROCESSOR_COUNT
        return {
            "name": self._device.name(),
            "runtime": major * 1000 + minor * 10 + patch,
            "driver": driver.get_driver_version(),
            "compute": "%d.%d" % self._device.compute_capability(),
            "processors": self._device.get_attribute(processors),
        }

    def memory(self):
        """Bytes of the device's memory that are free, and all of them."""
        return driver.mem_get_info()

    def allocate(self, size_bytes):
        """Address of device memory; never 0, however small it is."""
        allocation = driver.mem_alloc(max(1, size_bytes))
        self._memory[int(allocation)] = allocation
        return int(allocation)

    def pin(self, size_bytes):
        """Address of page-locked host memory, from and to which copies are asynchronous."""
        array = driver.pagelocked_empty(max(1, size_bytes), "uint8")
        address = array.__array_interface__["data"][0]
        self._pinned[address] = array
        return address

    def stream(self):
        """A new stream."""
        stream = driver.Stream()
        self._streams[stream.handle] = stream
        return stream.handle

    def event(self, spin=False):
        """A new event; ``wait`` for it spins, or sleeps, which leaves the CPU to others."""
        flags = driver.event_flags.DEFAULT if spin else driver.event_flags.BLOCKING_SYNC
        event = driver.Event(flags)
        self._events[id(event)] = event
        return id(event)

    def record(self, event, stream):
        """Have the stream mark the event when it comes to it."""
        self._events[event].record(self._streams[stream])

    def wait(self, event):
        """Return when the event has been marked."""
        self._events[event].synchronize()

    def elapsed_s(self, first, second):
        """Seconds between two marked events, on the GPU's clock (0.5 us fine)."""
        return self._events[first].time_till(self._events[second]) * 1e-3

    def copy_in(self, device, host, size_bytes, stream):
        """Have the stream copy from host to device."""
        array = self._pinned[host][:size_bytes]
        driver.memcpy_htod_async(device, array, self._streams[stream])

    def copy_out(self, host, device, size_bytes, stream):
        """Have the stream copy from device to host."""
        array = self._pinned[host][:size_bytes]
        driver.memcpy_dtoh_async(array, device, self._streams[stream])

    def synchronise(self, stream):
        """Return when the stream has nothing left to do."""
        self._streams[stream].synchronize()

    def capture(self, stream, work):
        """No graph: most of pycuda's versions have none, and ``CudaError`` says so."""
        del stream, work
        text = "pycuda captures no graphs: use the ctypes layer, or no graph"
        raise CudaError("capture", 801, "cudaErrorNotSupported", text)

    def launch(self, graph, stream):
        """Never called: there are no graphs to launch."""
        self.capture(stream, graph)

    def close(self):
        """Free everything, and leave the context."""
        for held in (self._events, self._streams, self._memory, self._pinned):
            held.clear()
        self._context.pop()
