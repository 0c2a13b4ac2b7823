"""The steps in which time rises with channels, by models whose staircases are known."""

import pytest

from latency_models import profiles
from latency_models.model import LatencyModel, Parameter
from latency_models.staircase import channel_step


def model_with(profile, **values):
    """What a board's datasheet says, with some parameters set."""
    board = profiles.load(profile)
    return LatencyModel(
        profile=board,
        precisions=tuple(board.precisions),
        parameters=tuple(Parameter(name, value, "", value, 0.1) for name, value in values.items()),
        measured_groups=(),
        kernel_samples=(),
        network_samples=(),
        held_out_=(),
    )


def test_kernels_that_fill_vectors_of_sixteen_have_steps_of_sixteen():
    assert channel_step(model_with("generic-cpu"), "fp32") == 16


# Tiles of 32 outputs: of the rise over a tile, (1 + 32 s) / (32 + 32 s) comes with its first.
@pytest.mark.parametrize(
    ("steepness", "step"),
    [(1e-9, None), (1.0, None), (2.5, None), (4.0, 32), (50.0, 32)],  # 0.03, 0.52, 0.72, 0.81, 0.98
)
def test_tiles_are_steps_where_a_tile_that_is_not_full_costs_as_much_as_a_full_one(steepness, step):
    model = model_with("jetson-nano", s=steepness, n0=1e-9, bw=1e30, bw_w=1e30)
    assert channel_step(model, "fp16") == step


def test_a_precision_that_the_model_does_not_know_has_no_step():
    assert channel_step(model_with("jetson-nano"), "int8") is None
