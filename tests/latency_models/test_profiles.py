import csv
import re

import pytest

from latency_models import errors, profiles
from latency_models.profiles import Scales
from tests.latency_models.networks import MEASURED

SMALL = """
name = "small"
description = "a board"
runtime = "tensorrt"
precisions = ["fp32"]
[peak_flops]
fp32 = { value = 1e9, source = "s" }
[memory]
bandwidth_bytes_per_s = { value = 1e9, source = "s" }
cache_bandwidth_bytes_per_s = { value = 2e9, source = "s", confirmed = false }
cache_bytes = { value = 1024, source = "s" }
[overhead]
kernel_s = { value = 1e-6, source = "s" }
network_s = { value = 1e-6, source = "s" }
profiler_s = { value = 1e-6, source = "s" }
[channels]
step = { value = 8, source = "s" }
"""


@pytest.mark.parametrize("name", profiles.available())
def test_every_profile_gives_a_source_for_every_number(name):
    profile = profiles.load(name)
    assert profile.name == name
    facts = dict(profile.facts())
    assert set(profiles.FACTS) <= set(facts)
    for field, fact in facts.items():
        assert fact.source, field
        # What a source calls recollection or a start is not confirmed.
        if re.search("recollection|start for|order of magnitude", fact.source):
            assert not fact.confirmed, field


def test_the_nano_has_half_precision_and_no_int8():
    nano = profiles.load("jetson-nano")
    assert nano.precisions == ("fp32", "fp16")
    # 2 flops x 128 cores x 921.6 MHz.
    assert nano.peak_flops["fp32"].value == pytest.approx(2 * 128 * 921.6e6, rel=1e-3)
    assert nano.bandwidth_bytes_per_s.value == 25.6e9
    assert nano.bandwidth_bytes_per_s.confirmed
    assert not nano.cache_bandwidth_bytes_per_s.confirmed


def test_the_nanos_cores_have_a_profile_of_their_own():
    cores = profiles.load("jetson-nano-cpu")
    # 4 cores x 4 lanes x 2 flops x 1479 MHz.
    assert cores.peak_flops["fp32"].value == pytest.approx(4 * 4 * 2 * 1.479e9, rel=1e-3)
    assert cores.clocks.gpu_hz is None


BOARDS = {
    "jetson_nano_4gb": "jetson-nano",
    "jetson_tx2": "jetson-tx2",
    "jetson_xavier_nx": "jetson-xavier-nx",
    "jetson_agx_xavier_32gb": "jetson-agx-xavier",
    "jetson_orin_nano_8gb": "jetson-orin-nano",
    "jetson_orin_nx_16gb": "jetson-orin-nx",
    "jetson_agx_orin_64gb": "jetson-agx-orin",
}


def first_number(text):
    return float(re.search(r"[0-9.]+", text).group())


def test_the_profiles_agree_with_the_table_of_boards():
    if not MEASURED.is_dir():
        pytest.skip("the measured tables are not here")
    with (MEASURED / "boards.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {row["board"] for row in rows} == set(BOARDS)
    for row in rows:
        profile = profiles.load(BOARDS[row["board"]])
        assert profile.sms.value == first_number(row["sms"])
        assert profile.clocks.gpu_hz.value / 1e6 == first_number(row["gpu_clock_max_mhz"])
        assert profile.bandwidth_bytes_per_s.value / 1e9 == first_number(row["mem_bw_gbs"])
        peaks = {key: fact.value / 1e9 for key, fact in profile.peak_flops.items()}
        assert peaks["fp32"] == first_number(row["fp32_peak_gflops"])
        tensor = re.search(r"~([0-9.]+)", row["fp16_peak_gflops"])
        half = 1e3 * float(tensor.group(1)) if tensor else first_number(row["fp16_peak_gflops"])
        assert peaks["fp16"] == half
        int8 = first_number(row["int8_dense_peak_tops"])
        assert ("int8" in profile.precisions) == (int8 > 0)
        assert peaks.get("int8", 0.0) == 1e3 * int8


def test_a_power_mode_scales_by_its_clocks_over_the_reference():
    nano = profiles.load("jetson-nano")
    # 614.4 / 921.6, 921.6 / 1479, 1600 / 1600.
    assert nano.scales("5w") == pytest.approx(Scales(gpu=2 / 3, cpu=0.6231237, memory=1.0))
    assert nano.scales("MAXN") == nano.scales(None) == Scales(1.0, 1.0, 1.0)
    tx2 = profiles.load("jetson-tx2")
    assert tx2.scales("maxp").gpu == pytest.approx(0.865)
    assert tx2.scales("maxq").gpu == pytest.approx(0.654)


def test_a_power_mode_that_turns_multiprocessors_off_halves_the_arithmetic():
    orin = profiles.load("jetson-orin-nano")
    # 408 / 625 MHz on 4 of 8 multiprocessors; a clock that is not given stays.
    assert orin.scales("7W").gpu == pytest.approx(408 / 625 / 2)
    assert orin.scales("7W").memory == 1.0


def test_without_a_gpu_the_arithmetic_runs_at_the_cpu_clock():
    text = SMALL + (
        '[clocks]\ncpu_hz = { value = 2e9, source = "s" }\n'
        '[power_modes.SLOW]\ncpu_hz = { value = 1e9, source = "s" }\n'
    )
    assert profiles.parse(text, where="x.toml").scales("slow") == Scales(0.5, 0.5, 1.0)


def test_an_unknown_power_mode_names_those_there_are():
    with pytest.raises(errors.PowerModeNotFound, match=r"'10W': there are MAXN, 5W"):
        profiles.load("jetson-nano").scales("10W")


def test_an_unknown_profile_names_those_there_are():
    with pytest.raises(errors.ProfileNotFound, match=r"generic-cpu, .*jetson-nano, "):
        profiles.load("abacus")


def test_a_profile_without_clocks_is_whole():
    small = profiles.parse(SMALL, where="x.toml")
    assert (small.clocks, small.sms, dict(small.power_modes)) == (None, None, {})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (SMALL, "name =", "not TOML"),
        (SMALL, 'name = "x"', "is missing or wrong"),
        ("cache_bytes = ", "cash_bytes = ", r"x.toml: memory\.cache_bytes is missing"),
        ("{ value = 8,", '{ value = "wide",', r"channels\.step is missing or wrong"),
        ("{ value = 8,", "{ value = -8,", r"channels\.step: .* positive"),
        ("confirmed = false", 'confirmed = "no"', r"cache_bandwidth.*true or false"),
        ("confirmed = false", "confirm = false", r"cache_bandwidth.*'confirm' is none of"),
        ("[channels]", "[clocks]\ngpu_ghz = 1\n[channels]", r"clocks\.gpu_ghz is no clock"),
        ("[channels]", "[power_modes.A]\nx_hz = 1\n[channels]", r"power_modes\.A\.x_hz"),
        ("[channels]", "[clocks]\ncpu_hz = 1\n[channels]", r"clocks\.cpu_hz is missing or wrong"),
    ],
)
def test_a_file_that_is_no_profile_is_refused_by_field(old, new, message):
    with pytest.raises(errors.FormatError, match=message):
        profiles.parse(SMALL.replace(old, new), where="x.toml")


@pytest.mark.parametrize(("value", "source"), [(0.0, "s"), (float("nan"), "s"), (1.0, "")])
def test_a_number_without_sense_or_source_is_refused(value, source):
    with pytest.raises(errors.FormatError):
        profiles.Fact(value, source)
