"""What is printed of a TensorRT engine, and the same as JSON."""

import io
import json

import pytest
from rich.console import Console

from harness.engines import Profiled
from harness.records import BuildSettings, Interval, LayerPrecision, Profile
from harness.report import engines
from harness.tensorrt.rebuilds import Rebuilds
from harness.trtexec import summary
from tests.tensorrt.test_rebuilds import measured
from tests.trtexec.test_summary import taken


def profiled(measurement, **more):
    kernels = Profile(network_sha256="", runtime="tensorrt", runtime_version="8.2.1", kernels=())
    return Profiled(measurement=measurement, profile=kernels, **more)


def builds(low):
    return Rebuilds(
        latencies_s=(1.1e-3, 1e-3),
        kept=1,
        spread=0.1,
        spread_interval=Interval(low, 0.12, 0.95),
        deviation=0.05,
        distinct=2,
    )


def text(measurement, found):
    made = engines.engine_text(measurement, summary.of(measurement), found)
    console = Console(file=io.StringIO(), width=140)
    console.print(made)
    return console.file.getvalue()


def test_times_engine_builds_and_notes_are_printed():
    measurement = taken()
    shown = text(measurement, profiled(measurement, builds=builds(0.08), notes=("look here",)))
    assert "GPU Compute Time" in shown and "250 calls a second" in shown
    assert "Engine: 1.00 kB, built in 2.00 s" in shown
    assert "10.0% more than the fastest (8.0% to 12.0%)" in shown
    assert "2 different engines; number 2 is kept" in shown
    assert "note: look here" in shown


def test_builds_that_measuring_cannot_tell_apart_are_called_so():
    measurement = taken()
    shown = text(measurement, profiled(measurement, builds=builds(-0.01)))
    assert "cannot tell them apart" in " ".join(shown.split())


def test_a_measurement_of_another_runtime_has_nothing_of_it():
    measurement = measured("net.onnx", 1.0, sha=None)
    found = profiled(measurement)
    assert engines.engine_text(measurement, None, found) is None
    assert engines.engine_json(measurement, None, found) == {}


def test_json_has_all_of_it():
    measurement = taken()
    found = profiled(measurement, builds=builds(0.08), notes=("look here",))
    content = engines.engine_json(measurement, summary.of(measurement), found)
    read = json.loads(json.dumps(content))
    assert read["engine"]["size_bytes"] == 1000
    assert read["parts"]["h2d_s"] == [1e-4, 3e-4, 2e-4]
    assert read["performance"]["times"]["H2D Latency"]["max_s"] == 3e-4
    assert read["builds"]["kept"] == 1 and read["notes"] == ["look here"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"flags": ("bf16",)}, "bf16"),
        ({"strongly_typed": True, "flags": ("fp16",)}, "strongly typed"),
        ({"layers": (LayerPrecision(node="a", precision="fp16"),)}, "prefer or obey"),
        ({"rebuild": -1}, "negative"),
        ({"workspace_bytes": 0}, "workspace_bytes"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        BuildSettings(**settings)
