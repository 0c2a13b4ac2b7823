"""A chip's capability decides which precisions are tried, and whether Q/DQ may be sent."""

from dataclasses import replace

import pytest

from device_agent import trt_api
from harness.compression import quantize
from harness.records import GpuFacts, Group
from harness.strategies import generator
from harness.tensorrt import checks, chips, versions
from latency_models import profiles
from tests.tensorrt.nets import chain, facts
from tests.tensorrt.test_placement import quantized


# NVIDIA's support matrix, "Hardware and Precision", row by row.
@pytest.mark.parametrize(
    ("compute", "precisions"),
    [
        ("5.2", ("fp32",)),
        ("5.3", ("fp32", "fp16")),
        ("6.1", ("fp32", "int8")),
        ("6.2", ("fp32", "fp16")),
        ("7.2", ("fp32", "fp16", "int8")),
        ("8.7", ("fp32", "fp16", "int8")),
        ("12.0", ("fp32", "fp16", "int8")),
    ],
)
def test_precisions_are_those_that_the_chip_computes_fast(compute, precisions):
    assert chips.capability_of(GpuFacts(name="gpu", compute=compute)).precisions == precisions


def test_the_runtimes_word_on_fp16_counts_and_int8_needs_both():
    said = GpuFacts(name="gpu", compute="5.3", fast_fp16=False, fast_int8=True)
    assert chips.capability_of(said).precisions == ("fp32",)
    denied = GpuFacts(name="gpu", compute="8.7", fast_fp16=True, fast_int8=False)
    assert chips.capability_of(denied).precisions == ("fp32", "fp16")


def test_an_unknown_gpu_computes_in_fp32_alone():
    found = chips.capability_of(GpuFacts(name="gpu"))
    assert found.precisions == ("fp32",)
    assert "not known" in found.source


def test_a_word_that_is_no_compute_capability_is_refused():
    with pytest.raises(ValueError, match="looks like"):
        chips.of_compute("sm_53")


@pytest.mark.parametrize(
    ("profile", "compute"),
    [
        ("jetson-nano", "5.3"),
        ("jetson-tx2", "6.2"),
        ("jetson-agx-xavier", "7.2"),
        ("jetson-agx-orin", "8.7"),
    ],
)
def test_the_board_profiles_offer_what_the_chips_table_says(profile, compute):
    offered = profiles.load(profile).precisions
    assert set(offered) == set(chips.capability_of(GpuFacts(name="g", compute=compute)).precisions)


@pytest.mark.parametrize("compute", ["5.3", "6.2"])
def test_no_qdq_network_passes_the_check_of_a_chip_without_fast_int8(compute):
    release = versions.release_of("tensorrt", "8.2.1")
    capability = chips.capability_of(GpuFacts(name="gpu", compute=compute))
    (found,) = checks.findings(quantized(chain(), weights="float"), release, capability)
    assert found.status == "error"
    assert f"sm_{compute.replace('.', '')} has no fast int8" in found.wrong


@pytest.mark.parametrize(
    ("compute", "offered"), [("5.3", {"fp32", "fp16"}), ("8.7", {"fp32", "fp16", "int8"})]
)
def test_the_options_of_a_fit_are_those_that_the_chip_computes_fast(compute, offered):
    group = Group(name="conv1", channels=32, producers=("conv1",), consumers=(), prunable=True)
    precisions = quantize.available_precisions(facts(compute=compute))
    options = generator.options_for((group,), precisions=precisions, step=8, prune=True)
    assert {option.precision for option in options["conv1"]} == offered


def test_a_board_that_tells_of_no_gpu_is_offered_fp32_alone():
    assert quantize.available_precisions(replace(facts(), gpu=None)) == ("fp32",)


def test_the_agents_table_of_chips_is_the_hosts():
    for compute in (*chips.FAST, "7.2", "8.7", "12.0"):
        assert trt_api.fast(compute) == chips.of_compute(compute)
