"""The ctypes layer against a strict stand-in for libcudart, and against pycuda where a GPU is."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from device_agent import cuda
from tests.device_agent import cudart
from tests.device_agent.cudart import KINDS


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cudart.compiled(tmp_path_factory.mktemp("cudart"))


@pytest.fixture
def library(path: Path) -> Iterator[ctypes.CDLL]:
    """The stand-in; whatever a test did, no call may have been given what is not its own."""
    library = cuda.open_library([str(path)])
    library.boardfit_set_version(10020)
    ctypes.c_int.in_dll(library, "boardfit_faults").value = 0
    ctypes.c_int.in_dll(library, "boardfit_launches").value = 0
    yield library
    assert ctypes.c_int.in_dll(library, "boardfit_faults").value == 0
    assert library.boardfit_held(0) == 0


@pytest.fixture
def gpu(library: ctypes.CDLL) -> Iterator[cuda.Cuda]:
    gpu = cuda.Cuda(library)
    yield gpu
    gpu.close()


def _fail(library: ctypes.CDLL, code: int) -> None:
    ctypes.c_int.in_dll(library, "boardfit_fail_next").value = code


def _round_trip(gpu: cuda.Cuda) -> bytes:
    """Eight bytes to the device, from there into another pinned buffer, and back."""
    stream = gpu.stream()
    source, target, device = gpu.pin(8), gpu.pin(8), gpu.allocate(8)
    ctypes.memmove(source, b"boardfit", 8)
    gpu.copy_in(device, source, 8, stream)
    gpu.copy_out(target, device, 8, stream)
    gpu.synchronise(stream)
    return ctypes.string_at(target, 8)


def test_facts_are_those_of_the_device(gpu: cuda.Cuda) -> None:
    assert gpu.facts() == {
        "name": "NVIDIA Tegra X1",
        "runtime": 10020,
        "driver": 10020,
        "compute": "5.3",
        "processors": 1,
    }
    assert gpu.memory() == (3 << 30, 4 << 30)


def test_what_goes_to_the_device_comes_back(gpu: cuda.Cuda) -> None:
    assert _round_trip(gpu) == b"boardfit"


def test_time_between_events_is_in_seconds(gpu: cuda.Cuda) -> None:
    stream, first, second = gpu.stream(), gpu.event(), gpu.event()
    gpu.record(first, stream)
    gpu.record(second, stream)
    gpu.wait(second)
    assert 0 <= gpu.elapsed_s(first, second) < 1


def test_events_sleep_unless_they_are_to_spin(gpu: cuda.Cuda, library: ctypes.CDLL) -> None:
    # cudaEventBlockingSync is 1, cudaEventDefault 0; cudaStreamNonBlocking is 1.
    library.boardfit_flags.argtypes = (ctypes.c_void_p, ctypes.c_int)
    assert library.boardfit_flags(gpu.event(), KINDS["event"]) == 1
    assert library.boardfit_flags(gpu.event(spin=True), KINDS["event"]) == 0
    assert library.boardfit_flags(gpu.stream(), KINDS["stream"]) == 1


@pytest.mark.parametrize("version", [10020, 11000, 11040, 12000, 13000])
def test_a_graph_is_made_by_the_call_that_the_version_has(
    gpu: cuda.Cuda, library: ctypes.CDLL, version: int
) -> None:
    library.boardfit_set_version(version)
    stream = gpu.stream()
    worked: list[int] = []
    graph = gpu.capture(stream, lambda: worked.append(1))
    assert worked == [1]
    assert library.boardfit_held(KINDS["graph"]) == 0
    gpu.launch(graph, stream)
    gpu.launch(graph, stream)
    assert ctypes.c_int.in_dll(library, "boardfit_launches").value == 2


def test_a_capture_whose_work_fails_leaves_the_stream_usable(gpu: cuda.Cuda) -> None:
    stream = gpu.stream()

    def work() -> None:
        raise RuntimeError("the engine did not enqueue")

    with pytest.raises(RuntimeError, match="did not enqueue"):
        gpu.capture(stream, work)
    gpu.synchronise(stream)  # the stand-in refuses that while a capture goes on


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda gpu: gpu.allocate(64), "cudaMalloc"),
        (lambda gpu: gpu.pin(64), "cudaHostAlloc"),
        (lambda gpu: gpu.stream(), "cudaStreamCreateWithFlags"),
        (lambda gpu: gpu.event(), "cudaEventCreateWithFlags"),
    ],
)
def test_a_return_code_becomes_an_error_that_names_call_and_reason(
    gpu: cuda.Cuda, library: ctypes.CDLL, call: Callable[[cuda.Cuda], object], name: str
) -> None:
    _fail(library, 2)
    expected = f"{name}: out of memory (2, cudaErrorMemoryAllocation)"
    with pytest.raises(cuda.CudaError, match=re.escape(expected)) as caught:
        call(gpu)
    assert (caught.value.call, caught.value.code) == (name, 2)


def test_a_handle_that_is_not_its_own_is_refused(library: ctypes.CDLL) -> None:
    gpu = cuda.Cuda(library)
    stream, event = gpu.stream(), gpu.event()
    for wrong in (
        lambda: gpu.record(stream, event),
        lambda: gpu.copy_in(gpu.pin(4), gpu.allocate(4), 4, stream),
        lambda: gpu.copy_in(gpu.allocate(4), gpu.pin(4), 8, stream),
        lambda: gpu.elapsed_s(event, event),
    ):
        with pytest.raises(cuda.CudaError, match="invalid argument"):
            wrong()
    gpu.close()
    ctypes.c_int.in_dll(library, "boardfit_faults").value = 0


def test_close_frees_everything_once(library: ctypes.CDLL) -> None:
    gpu = cuda.Cuda(library)
    _round_trip(gpu)
    assert library.boardfit_held(0) == 4
    gpu.close()
    assert library.boardfit_held(0) == 0
    gpu.close()


def test_a_machine_without_cuda_says_so_in_one_line() -> None:
    with pytest.raises(cuda.NoCuda, match=r"no libcudart\.so was found: install") as caught:
        cuda.open_library(["/nonexistent/libcudart.so"])
    assert "\n" not in str(caught.value)


def test_a_library_that_is_another_is_not_taken_for_libcudart() -> None:
    with pytest.raises(cuda.NoCuda):
        cuda.open_library(["libc.so.6"])


def test_a_machine_without_a_gpu_says_so(
    library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOARDFIT_NO_GPU", "1")
    with pytest.raises(cuda.NoCuda, match=r"finds no GPU; is there .* \(nvidia-smi\)"):
        cuda.Cuda(library)
    _fail(library, 35)
    with pytest.raises(cuda.NoCuda, match=r"no GPU answers it: something else; is there"):
        cuda.Cuda(library)


def test_the_variable_names_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cuda.VARIABLE, "/opt/libcudart.so.10.2")
    assert cuda.candidates() == ["/opt/libcudart.so.10.2"]


def _real() -> cuda.Cuda:
    try:
        return cuda.Cuda()
    except cuda.NoCuda as error:
        pytest.skip(f"no GPU: {error}")


def test_a_real_gpu_gives_back_what_it_was_given() -> None:
    gpu = _real()
    assert _round_trip(gpu) == b"boardfit"
    assert re.fullmatch(r"\d+\.\d", gpu.facts()["compute"])
    gpu.close()


def test_pycuda_and_ctypes_agree_on_a_real_gpu() -> None:
    first = _real()
    if importlib.util.find_spec("pycuda") is None:
        first.close()
        pytest.skip("pycuda is not installed")
    from device_agent import cuda_pycuda

    second = cuda_pycuda.Cuda()
    try:
        # The library that each of them was built with may differ; the device may not.
        for name in ("name", "driver", "compute", "processors"):
            assert first.facts()[name] == second.facts()[name]
        assert first.memory()[1] == second.memory()[1]
        assert _round_trip(first) == _round_trip(second) == b"boardfit"
        stream, events = second.stream(), (second.event(), second.event(spin=True))
        for event in events:
            second.record(event, stream)
        second.wait(events[1])
        assert 0 <= second.elapsed_s(*events) < 1
    finally:
        second.close()
        first.close()


class _Event:
    def __init__(self, flags: int) -> None:
        self.flags, self.at_ms = flags, -1.0

    def record(self, stream: _Stream) -> None:
        self.at_ms = stream.tick()

    def synchronize(self) -> None:
        assert self.at_ms >= 0

    def time_till(self, other: _Event) -> float:
        return other.at_ms - self.at_ms


class _Stream:
    def __init__(self) -> None:
        self.handle, self._ms = 4711, 0.0

    def tick(self) -> float:
        self._ms += 2.0
        return self._ms

    def synchronize(self) -> None:
        self.tick()


class _Context:
    def __init__(self) -> None:
        self.pushed = 0

    def push(self) -> None:
        self.pushed += 1

    def pop(self) -> None:
        self.pushed -= 1


CONTEXT = _Context()


class _Device:
    def __init__(self, number: int) -> None:
        assert number == 0

    count = staticmethod(lambda: 1)
    name = staticmethod(lambda: "NVIDIA Tegra X1")
    compute_capability = staticmethod(lambda: (5, 3))
    get_attribute = staticmethod(lambda attribute: attribute)
    retain_primary_context = staticmethod(lambda: CONTEXT)


def _pycuda() -> types.ModuleType:
    """As much of pycuda.driver as its reference says that the layer uses, on host memory."""
    driver = types.ModuleType("pycuda.driver")
    memory: dict[int, np.ndarray] = {}

    def mem_alloc(size: int) -> int:
        array = np.zeros(size, np.uint8)
        address: int = array.__array_interface__["data"][0]
        memory[address] = array
        return address

    def to_device(device: int, array: np.ndarray, stream: _Stream) -> None:
        memory[device][: array.nbytes] = array
        stream.tick()

    def to_host(array: np.ndarray, device: int, stream: _Stream) -> None:
        array[:] = memory[device][: array.nbytes]
        stream.tick()

    vars(driver).update(
        init=lambda: None,
        Device=_Device,
        Stream=_Stream,
        Event=_Event,
        Error=type("Error", (Exception,), {}),
        event_flags=types.SimpleNamespace(DEFAULT=0, BLOCKING_SYNC=1),
        device_attribute=types.SimpleNamespace(MULTIPROCESSOR_COUNT=1),
        get_version=lambda: (10, 2, 0),
        get_driver_version=lambda: 10020,
        mem_get_info=lambda: (3 << 30, 4 << 30),
        mem_alloc=mem_alloc,
        pagelocked_empty=lambda size, kind: np.empty(size, kind),
        memcpy_htod_async=to_device,
        memcpy_dtoh_async=to_host,
    )
    return driver


def test_the_pycuda_layer_does_on_a_stand_in_what_the_other_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package = types.ModuleType("pycuda")
    package.driver = _pycuda()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", package.driver)
    monkeypatch.delitem(sys.modules, "device_agent.cuda_pycuda", raising=False)
    layer = importlib.import_module("device_agent.cuda_pycuda")
    gpu = layer.Cuda()
    assert CONTEXT.pushed == 1
    assert gpu.facts() == {
        "name": "NVIDIA Tegra X1",
        "runtime": 10020,
        "driver": 10020,
        "compute": "5.3",
        "processors": 1,
    }
    assert gpu.memory() == (3 << 30, 4 << 30)
    assert _round_trip(gpu) == b"boardfit"
    stream, first, second = gpu.stream(), gpu.event(), gpu.event(spin=True)
    gpu.record(first, stream)
    gpu.record(second, stream)
    gpu.wait(second)
    assert gpu.elapsed_s(first, second) == pytest.approx(2e-3)  # the stream ticks every 2 ms
    with pytest.raises(cuda.CudaError, match="use the ctypes layer, or no graph"):
        gpu.capture(stream, lambda: None)
    gpu.close()
    assert CONTEXT.pushed == 0
    monkeypatch.delitem(sys.modules, "device_agent.cuda_pycuda")


def test_both_layers_have_the_same_calls() -> None:
    """pycuda is not imported where there is no GPU: its calls are read from the source."""
    source = Path(cuda.__file__).with_name("cuda_pycuda.py").read_text()
    pattern = re.compile(r"^    def ([a-z]\w*\(.*\)):", re.MULTILINE)
    mine = pattern.findall(Path(cuda.__file__).read_text())
    assert pattern.findall(source) == mine
    assert len(mine) == 15
