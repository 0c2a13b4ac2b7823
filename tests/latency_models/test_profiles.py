import pytest

from latency_models import errors, profiles


@pytest.mark.parametrize("name", profiles.available())
def test_every_profile_gives_a_source_for_every_number(name):
    profile = profiles.load(name)
    assert profile.name == name
    facts = [*profile.peak_flops.values(), profile.bandwidth_bytes_per_s, profile.cache_bytes]
    assert all(fact.source for fact in facts)


def test_the_nano_has_half_precision_and_no_int8():
    nano = profiles.load("jetson-nano")
    assert nano.precisions == ("fp32", "fp16")
    # 2 flops x 128 cores x 921.6 MHz.
    assert nano.peak_flops["fp32"].value == pytest.approx(2 * 128 * 921.6e6, rel=1e-3)
    assert nano.bandwidth_bytes_per_s.value == 25.6e9


def test_an_unknown_profile_names_those_there_are():
    with pytest.raises(errors.ProfileNotFound, match="generic-cpu, jetson-nano"):
        profiles.load("abacus")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name =", "not TOML"),
        ('name = "x"', "is missing or wrong"),
    ],
)
def test_a_file_that_is_no_profile_is_refused(text, message):
    with pytest.raises(errors.FormatError, match=message):
        profiles.parse(text, where="x.toml")


@pytest.mark.parametrize(("value", "source"), [(0.0, "s"), (float("nan"), "s"), (1.0, "")])
def test_a_number_without_sense_or_source_is_refused(value, source):
    with pytest.raises(errors.FormatError):
        profiles.Fact(value, source)
