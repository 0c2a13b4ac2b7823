"""``boardfit calibrate`` on a board with TensorRT and fast int8: a sweep in all three precisions.

The stand-in's profiler tells made-up times: what is asserted is which networks were quantized,
built and profiled, and that the latency model has parameters of what they are made of. Whether
TensorRT computes them on integers TensorRT-RTX's real builder is asked, which needs no GPU.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest

from harness import calibrate
from harness.boards.engines import Engines
from harness.boards.plans import EngineRequest
from harness.records import Measurement, Profile
from harness.store import Store
from latency_models import calibration, graph, probes, profiles, sweep
from tests.benchmarks.tensorrt import target
from tests.tensorrt import rtx
from tests.tensorrt.conftest import rtx_python  # noqa: F401  (fixture)
from tests.test_cli import run
from tests.test_engines import calls, folder, library  # noqa: F401  (fixtures)
from tests.test_engines_fit import brief  # noqa: F401

PRECISIONS = ("fp32", "fp16", "int8")
TYPES = {
    "fp32": {"FLOAT"},
    "fp16": {"FLOAT", "HALF"},
    "int8": {"FLOAT", "INT8"},
    "mixed": {"FLOAT", "INT8"},
}


def test_a_sweep_quantizes_builds_and_profiles_kernels_of_int8(
    folder,  # noqa: F811
    capsys,
    monkeypatch,
):
    monkeypatch.setenv("BOARDFIT_COMPUTE", "8.7")
    monkeypatch.setenv("BOARDFIT_TENSORRT8", "8.5.2.2")
    code, _, err = run(capsys, "calibrate", "--out", "cal")
    assert code == 0, err
    with Store(Path("cal/measurements.db")) as store:
        measured = Counter(m.precision for m in store.all(Measurement) if "probe" in m.label)
        profiled = store.all(Profile)
    # Nine families in each, and one of both, in every turn.
    turns = calibrate.TURNS
    assert measured == {"fp32": 9 * turns, "fp16": 9 * turns, "int8": 9 * turns, "mixed": turns}
    # Two stages in three precisions, each an engine of its own.
    assert len({profile.engine_key for profile in profiled}) == len(profiled) == 6
    flags = Counter(call[1] for call in calls(folder) if call[0] == "config.set_flag")
    # The stages and the probes; nothing is allowed int8 or fp16 that is not meant to be.
    assert flags == {"BuilderFlag.INT8": 2 + 10, "BuilderFlag.FP16": 2 + 9}

    model = calibration.LatencyModel.from_json(Path("cal/latency_model.json").read_text())
    assert set(model.precisions) == set(PRECISIONS)
    for probe in probes.probes(PRECISIONS, runtime="tensorrt"):
        kernels = graph.read(
            probe.model, runtime="tensorrt", precision=graph.base_of(probe.precision)
        )
        assert model.unsupported(tuple(graph.work(kernel) for kernel in kernels)) == ()


@pytest.fixture(scope="module")
def swept():
    """What a sweep measures on a GPU: the first stage's kernels, and the probes but the largest."""
    plan = sweep.plan(
        (), precisions=PRECISIONS, runtime="tensorrt", profile=profiles.load("generic-gpu")
    )
    return (*plan.networks, *(one for one in plan.probes if "large" not in one.name))


def test_tensorrts_own_builder_takes_a_sweep_in_its_precisions(
    swept,
    rtx_python,  # noqa: F811
    tmp_path,
):
    sending = Engines(target(rtx.version(rtx_python)))
    files = []
    for one in swept:
        path = tmp_path / f"{one.name}.onnx"
        onnx.save(one.model, path)
        request = EngineRequest(label=one.name, path=path, precision=one.precision)
        files.append(sending.of(request).path)
    built = rtx.build_all(rtx_python, files)
    sending.close()
    assert [told["errors"] for told in built] == [[]] * len(swept)
    assert all(told["built"] for told in built)
    types = [{kind.rpartition(".")[2] for kind in told["types"]} for told in built]
    assert types == [TYPES[one.precision] for one in swept]
    assert {one.precision for one in swept} == set(TYPES)
