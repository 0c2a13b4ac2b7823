"""Requirements from TOML and flags: what they mean, and everything that is wrong with them."""

import textwrap

import pytest

from harness.errors import ConfigError
from harness.planning import requirements
from harness.planning.requirements import from_flags, merged, read

FILE = """
latency = "40ms"
percentile = 90
size = "3MB"
macs = "50%"
energy = "20mJ"
parameters = 1000000
accuracy = "90%"
max_drop = 1.5
methods = ["quantize", "prune"]
precisions = ["fp32", "int8"]
keep = ["stem"]
input_size = [3, 224, 224]

[objective]
accuracy = 3
latency = 1
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "requirements.toml"
    path.write_text(FILE)
    return path


def wrong(**flags):
    with pytest.raises(ConfigError) as raised:
        from_flags(**flags)
    return str(raised.value).splitlines()[1:]


def test_a_file_is_read_field_by_field(file):
    asked = read(file)
    found = {r.quantity: (r.limit, r.relative, r.text) for r in asked.limits}
    assert found == {
        "latency": (0.04, False, "40ms"),
        "size": (3e6, False, "3MB"),
        "parameters": (1e6, False, "1000000"),
        "macs": (0.5, True, "50%"),
        "energy": (0.02, False, "20mJ"),
        "accuracy_floor": (0.9, False, "90%"),
        "accuracy_drop": (1.5, False, "1.5 points"),
    }
    assert asked.limit("latency").percentile == 90
    assert asked.limit("size").percentile == 50
    assert asked.methods == ("prune", "quantize")  # in the order of their use
    assert asked.precisions == ("fp32", "int8")
    assert asked.objective == {"accuracy": 0.75, "latency": 0.25}
    assert asked.keep == ("stem",)
    assert asked.input_size == (3, 224, 224)


def test_nothing_asked_leaves_every_method_and_precision():
    asked = from_flags()
    assert asked.limits == ()
    assert asked.methods == ("prune", "quantize", "distill")
    assert asked.precisions == ("fp32", "fp16", "int8")
    assert asked.objective == {"accuracy": 1.0}


@pytest.mark.parametrize("flags", [{"fps": 25}, {"fps": "25 fps"}, {"throughput": "25/s"}])
def test_a_rate_is_the_time_of_one_call(flags):
    (limit,) = from_flags(**flags).limits
    assert limit.quantity == "latency"
    assert limit.limit == pytest.approx(0.04)


def test_a_flag_takes_the_place_of_what_the_file_says_of_the_same_thing(file):
    asked = merged(file, fps=50, size="1MB", max_drop=None)
    assert asked.limit("latency").limit == pytest.approx(0.02)
    assert asked.limit("latency").percentile == 90  # the file's, which nobody took back
    assert asked.limit("size").limit == 1e6
    assert asked.limit("accuracy_drop").limit == 1.5


def test_without_quantization_the_only_precision_is_fp32():
    assert from_flags(methods=("prune",)).precisions == ("fp32",)


def test_weights_of_the_objective_are_given_as_a_word_or_as_shares():
    assert from_flags(objective="size").objective == {"size": 1.0}
    assert from_flags(objective="accuracy=1, size=1").objective == {"accuracy": 0.5, "size": 0.5}


def test_a_latency_and_a_rate_contradict_each_other_and_both_are_named():
    assert wrong(latency="40ms", fps=30) == [
        "  latency '40ms' and fps 30 limit the same thing, the time of one call; give one of them"
    ]


def test_every_field_that_is_wrong_is_told_at_once():
    told = wrong(latency="40", size="-3MB", max_drop=-1, colour="red", keep=7, accuracy="105%")
    begin = ("keep 7", "colour is no", "latency '40'", "size '-3MB'", "accuracy '105%'", "max_drop")
    assert len(told) == len(begin)
    assert all(line.strip().startswith(one) for line, one in zip(told, begin, strict=True))


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ({"methods": ["prune"], "precisions": ["int8"]}, "do not quantize"),
        ({"methods": ["quantize"], "precisions": ["fp32"]}, "nothing to quantize to"),
        ({"methods": []}, "nothing to do"),
        ({"methods": ["shrink"]}, "'shrink'; choose from prune"),
        ({"precisions": ["int3"]}, "'int3'; choose from fp32"),
        ({"objective": {"accuracy": 0}}, "sum to 0"),
        ({"objective": {"latency": -1}}, "a weight is 0 or more"),
        ({"objective": "speed"}, "'speed'; choose from accuracy"),
        ({"objective": "size=much"}, "no number"),
        ({"accuracy": 91.5}, "write it as a share, 91.5%"),
        ({"percentile": 90}, "none is required"),
        ({"percentile": 100, "latency": "1ms"}, "between 0 and 100"),
        ({"fps": "50%"}, "is a share"),
        ({"fps": 0}, "greater than zero"),
        ({"max_drop": float("nan")}, "between 0 and 100"),
        ({"input_size": "3,wide"}, "for example 3,224,224"),
        ({"input_size": [3, 0]}, "for example 3,224,224"),
        ({"energy": "3 W"}, "unit 'W' is unknown"),
        ({"parameters": "many"}, "not a number"),
        ({"keep": [" "]}, "no name"),
    ],
)
def test_what_cannot_be_is_refused_with_the_way_out(flags, complaint):
    assert any(complaint in line for line in wrong(**flags))


def test_a_file_that_is_no_toml_is_named(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text("latency = ")
    with pytest.raises(ConfigError, match=r"broken\.toml cannot be read"):
        read(path)
    with pytest.raises(ConfigError, match=r"absent\.toml cannot be read"):
        read(tmp_path / "absent.toml")


def test_the_file_in_the_documentation_is_one(tmp_path):
    path = tmp_path / "requirements.toml"
    path.write_text(textwrap.dedent(requirements.__doc__.split("::\n", 1)[1]))
    asked = read(path)
    assert asked.limit("latency").limit == 0.04
    assert asked.limit("peak_memory").limit == 2e6
    assert asked.objective == {"accuracy": 0.7, "latency": 0.3}
