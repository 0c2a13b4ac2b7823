"""Batches that go through networks in step: all wait at a layer until the last has come there.

A layer that is quantized wants to see what *all* calibration images bring to it, after every layer
before it was quantized, and before any image goes on. Running the network anew up to each layer
would cost the square of the number of layers. So each batch runs in a thread of its own that
stops at every layer; only one runs at a time. What must be kept is one layer's inputs.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness.networks import Layer

__all__ = ["run_in_step", "run_together", "stop_at"]

Visit = Callable[[str, list[Any]], None]


class _Abandoned(Exception):
    """Another batch failed: this one need not go on."""


class _Runner:
    """One batch on its way through a network, in a thread that runs only when it is told to."""

    def __init__(self, network: Callable[[Tensor], object], batch: Tensor) -> None:
        self.layer: str | None = None
        self.input: Any = None
        self.error: BaseException | None = None
        self._network, self._batch = network, batch
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self._abandoned = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._go.acquire()
        _CURRENT.runner = self
        try:
            if not self._abandoned:
                with torch.no_grad():
                    self._network(self._batch)
        except _Abandoned:
            pass
        except BaseException as error:  # handed to the thread that waits for this one
            self.error = error
        self.layer = None
        self._stopped.release()

    def wait_at(self, layer: str, a: Any) -> None:
        """Called in the thread: stop in front of a layer."""
        self.layer, self.input = layer, a
        self._stopped.release()
        self._go.acquire()
        self.input = None
        if self._abandoned:
            raise _Abandoned

    def resume(self) -> None:
        """Let it run to its next layer, or to its end."""
        self._go.release()
        self._stopped.acquire()
        if self.error is not None:
            raise self.error

    def abandon(self) -> None:
        """End the thread wherever it waits."""
        self._abandoned = True
        self._go.release()
        self._thread.join()


_CURRENT = threading.local()


@contextlib.contextmanager
def _stopping(layers: Mapping[str, Layer]) -> Iterator[None]:
    with contextlib.ExitStack() as hooks:
        for name, layer in layers.items():

            def stop(_module: nn.Module, inputs: tuple[Tensor, ...], *, name: str = name) -> None:
                _CURRENT.runner.wait_at(name, inputs[0])

            hooks.callback(layer.register_forward_pre_hook(stop).remove)
        yield


def run_in_step(
    runs: Sequence[tuple[nn.Module, Tensor]],
    layers: Sequence[Mapping[str, Layer]],
    visit: Visit,
) -> None:
    """Run every ``(network, batch)``; call ``visit(layer, inputs)`` when all wait at a layer.

    ``layers`` holds the layers of each network that takes part, by name. ``inputs`` is in the
    order of ``runs``. What ``visit`` changes in a layer holds for the call that waits. A layer
    called more than once is visited at every call.
    """
    with contextlib.ExitStack() as stack:
        for owned in layers:
            stack.enter_context(_stopping(owned))
        run_together(runs, visit)


def stop_at(place: str, value: Any) -> None:
    """Called within a run of ``run_together``: wait until all runs have come to this place."""
    _CURRENT.runner.wait_at(place, value)


def run_together(runs: Sequence[tuple[Callable[[Tensor], object], Tensor]], visit: Visit) -> None:
    """Run every ``(network, batch)``; call ``visit(place, values)`` when all have stopped there.

    Runs stop where they call ``stop_at``, all at the same places in the same order.
    """
    with contextlib.ExitStack() as stack:
        runners = [_Runner(network, batch) for network, batch in runs]
        for runner in runners:
            stack.callback(runner.abandon)
        while True:
            for runner in runners:
                runner.resume()
            name = runners[0].layer
            if any(runner.layer != name for runner in runners):
                raise RuntimeError(
                    "the network takes its layers in an order that its input decides"
                )
            if name is None:
                return
            visit(name, [runner.input for runner in runners if runner.input is not None])
