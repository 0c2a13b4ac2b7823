import pytest

from harness import units
from harness.errors import ConfigError
from harness.records import Requirement


@pytest.mark.parametrize(
    ("text", "limit", "relative"),
    [
        ("4ms", 0.004, False),
        (" 4 ms ", 0.004, False),
        ("250us", 250e-6, False),
        ("1.5s", 1.5, False),
        ("22%", 0.22, True),
        ("1e2 ms", 0.1, False),
    ],
)
def test_a_latency_is_absolute_with_a_unit_or_relative_with_a_percent_sign(text, limit, relative):
    budget = units.parse_latency(text)
    assert budget.limit == pytest.approx(limit, rel=1e-12)
    assert budget.relative is relative


def test_a_size_is_decimal_unless_it_says_mebibytes():
    assert units.parse_size("1.5MB").limit == 1.5e6
    assert units.parse_size("2 MiB").limit == 2 * 1024 * 1024


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("20 parsecs", "'parsecs' is unknown"),
        ("20", "unit is missing"),
        ("-4ms", "greater than zero"),
        ("0%", "greater than zero"),
        ("fast", "not a number"),
        ("4MB", "'MB' is unknown"),
        ("nan ms", "not a number"),
        ("1e999ms", "greater than zero"),
    ],
)
def test_a_bad_latency_is_named_with_the_way_out(text, fragment):
    with pytest.raises(ConfigError) as error:
        units.parse_latency(text)
    assert fragment in str(error.value)
    assert "4ms" in str(error.value)
    assert text in str(error.value)


def test_a_negative_accuracy_drop_is_refused():
    with pytest.raises(ConfigError, match="--max-drop -1"):
        units.parse_accuracy_drop(-1.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1.5, "1.50 s"),
        (0.00123, "1.23 ms"),
        (0.0123, "12.3 ms"),
        (0.123, "123 ms"),
        (7e-6, "7.00 µs"),
    ],
)
def test_times_are_printed_with_three_significant_digits(seconds, text):
    assert units.format_time(seconds) == text


def test_sizes_and_counts_are_printed_with_three_significant_digits():
    assert units.format_size(1_500_000) == "1.50 MB"
    assert units.format_size(12) == "12 B"
    assert units.format_count(148_172_288) == "148 M"
    assert units.format_count(999) == "999"


@pytest.mark.parametrize(
    ("text", "of", "limit"),
    [
        ("40ms", "time", (0.04, False)),
        ("60%", "time", (0.6, True)),
        ("3MB", "size", (3e6, False)),
        ("20 mJ", "energy", (0.02, False)),
        ("1.5M", "count", (1.5e6, False)),
        ("250000", "count", (250000.0, False)),
    ],
)
def test_a_limit_is_read_in_the_units_of_what_it_limits(text, of, limit):
    assert units.parse_limit(text, name="limit", of=of) == pytest.approx(limit)


@pytest.mark.parametrize("text", ["25", "25fps", "25 fps", "25/s", "2.5e1 Hz"])
def test_a_rate_is_in_calls_a_second(text):
    assert units.parse_rate(text, name="fps") == 25


@pytest.mark.parametrize(("text", "share"), [("91.5%", 0.915), ("0.915", 0.915), ("100%", 1.0)])
def test_a_share_is_of_one(text, share):
    assert units.parse_share(text, name="accuracy") == pytest.approx(share)


@pytest.mark.parametrize(("text", "fragment"), [("91.5", "91.5%"), ("105%", "more than 100 %")])
def test_a_share_of_more_than_all_is_refused(text, fragment):
    with pytest.raises(ConfigError, match="accuracy") as error:
        units.parse_share(text, name="accuracy")
    assert fragment in str(error.value)


def test_energies_have_the_prefix_that_suits():
    assert units.format_energy(0.0123) == "12.3 mJ"
    assert units.format_energy(2.5) == "2.50 J"


@pytest.mark.parametrize(
    ("quantity", "value", "text"),
    [
        ("latency", 0.02, "20.0 ms"),
        ("engine_size", 5e6, "5.00 MB"),
        ("macs", 2e8, "200 M"),
        ("energy", 0.05, "50.0 mJ"),
        ("accuracy_floor", 0.915, "91.50 %"),
        ("accuracy_drop", 1.0, "1 point"),
        ("accuracy_drop", 0.25, "0.25 points"),
    ],
)
def test_an_amount_has_the_unit_of_the_requirement(quantity, value, text):
    requirement = Requirement(quantity=quantity, limit=1.0, text="")
    assert units.format_amount(requirement, value) == text


def test_a_share_of_the_original_has_no_unit():
    relative = Requirement(quantity="latency", limit=0.5, relative=True, text="")
    assert units.format_amount(relative, 0.25) == "25.0 %"


@pytest.mark.parametrize(
    ("points", "text"),
    [
        (1.25, "1.25 points"),
        (0.5, "0.5 points"),
        (1.0, "1 point"),
        (0.999, "1 point"),
        (10.0, "10 points"),
        (-0.001, "0 points"),
        (-1.5, "-1.5 points"),
    ],
)
def test_points_have_two_digits_at_most(points: float, text: str) -> None:
    assert units.format_points(points) == text
