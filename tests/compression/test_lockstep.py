import threading

import pytest
import torch
from torch import nn

from harness.compression.lockstep import run_in_step
from harness.networks import layers_in_order
from tests.compression.tiny import Residual, seeded

IMAGES = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(0))
BATCHES = list(IMAGES.split(4))


def ignore(_name: str, _inputs: list[torch.Tensor]) -> None:
    pass


def test_layers_are_visited_in_their_order_with_the_inputs_of_every_batch() -> None:
    network = seeded(Residual)
    layers = layers_in_order(network, IMAGES[:1])
    seen: list[tuple[str, list[int]]] = []

    def visit(name: str, inputs: list[torch.Tensor]) -> None:
        seen.append((name, [len(part) for part in inputs]))
        if name == "stem":
            assert all(torch.equal(a, b) for a, b in zip(inputs, BATCHES, strict=True))

    run_in_step([(network, batch) for batch in BATCHES], [layers], visit)
    assert seen == [(name, [4, 4, 2]) for name in layers]


def test_what_a_visit_changes_holds_for_the_call_that_waits() -> None:
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    layers = layers_in_order(network, torch.zeros(1, 2))
    read: list[torch.Tensor] = []

    def visit(name: str, inputs: list[torch.Tensor]) -> None:
        read.extend(part.clone() for part in inputs)
        if name == "0":
            with torch.no_grad():
                layers["0"].weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 3.0]]))

    run_in_step([(network, torch.ones(1, 2))], [layers], visit)
    assert [part.tolist() for part in read] == [[[1.0, 1.0]], [[2.0, 3.0]]]


def test_an_error_ends_every_batch_and_removes_the_hooks() -> None:
    network = seeded(Residual)
    layers = layers_in_order(network, IMAGES[:1])
    threads = threading.active_count()

    def visit(name: str, _inputs: list[torch.Tensor]) -> None:
        if name == "outer":
            raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        run_in_step([(network, batch) for batch in BATCHES], [layers], visit)
    wrong = [(network, BATCHES[0]), (network, torch.zeros(1, 7, 8, 8))]
    with pytest.raises(RuntimeError, match="channels"):
        run_in_step(wrong, [layers], ignore)
    assert threading.active_count() == threads
    with torch.no_grad():
        network(IMAGES)  # a hook left behind would wait for ever


class Moody(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = (self.a, self.b) if x.sum() > 0 else (self.b, self.a)
        return second(first(x))  # type: ignore[no-any-return]


def test_a_network_whose_input_decides_the_order_is_refused() -> None:
    network = Moody()
    layers = {"a": network.a, "b": network.b}
    runs: list[tuple[nn.Module, torch.Tensor]] = [
        (network, torch.ones(1, 2)),
        (network, -torch.ones(1, 2)),
    ]
    with pytest.raises(RuntimeError, match="its input decides"):
        run_in_step(runs, [layers], ignore)
