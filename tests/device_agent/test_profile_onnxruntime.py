"""The profile of real engines, under this Python and under 3.6 with onnxruntime 1.10."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from latency_models import synthetic
from tests.boards.support import ROOT, float_network, int8_network, python36_with_runtime

RUNS = 5
PROFILE = """
import json, sys
from device_agent import engine_onnxruntime
print(json.dumps(engine_onnxruntime.profile(sys.argv[1], 1, 0, int(sys.argv[2]), sys.argv[3])))
"""


def depthwise_network(path: Path) -> Path:
    """An inverted bottleneck with squeeze and excitation: depthwise, 1x1, swish, a sum at its end.

    Its layout changes between blocked and plain several times, and 16 to 24 channels make the
    runtime reorder weights of odd widths.
    """
    random = np.random.default_rng(2)
    arrays: list[onnx.TensorProto] = []

    def conv(name: str, source: str, out: int, into: int, kernel: int, groups: int = 1):
        shape = (out, into // groups, kernel, kernel)
        values = random.normal(scale=0.2, size=shape).astype(np.float32)
        arrays.append(numpy_helper.from_array(values, f"{name}.weight"))
        arrays.append(numpy_helper.from_array(np.zeros(out, np.float32), f"{name}.bias"))
        return helper.make_node(
            "Conv",
            [source, f"{name}.weight", f"{name}.bias"],
            [f"{name}_out"],
            name=f"/{name}/Conv",
            pads=[kernel // 2] * 4,
            group=groups,
        )

    nodes = [
        conv("stem", "x", 16, 3, 3),
        helper.make_node("Sigmoid", ["stem_out"], ["s"], name="/act/Sigmoid"),
        helper.make_node("Mul", ["stem_out", "s"], ["m"], name="/act/Mul"),
        conv("expand", "m", 24, 16, 1),
        conv("depthwise", "expand_out", 24, 24, 3, groups=24),
        helper.make_node("ReduceMean", ["depthwise_out"], ["r"], name="/se/Mean", axes=[2, 3]),
        conv("squeeze", "r", 8, 24, 1),
        helper.make_node("Relu", ["squeeze_out"], ["q"], name="/se/Relu"),
        conv("excite", "q", 24, 8, 1),
        helper.make_node("Sigmoid", ["excite_out"], ["g"], name="/se/Sigmoid"),
        helper.make_node("Mul", ["depthwise_out", "g"], ["gated"], name="/se/Mul"),
        conv("project", "gated", 16, 24, 1),
        helper.make_node("Add", ["project_out", "m"], ["y"], name="/Add"),
    ]
    graph = helper.make_graph(
        nodes,
        "bottleneck",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16, 32, 32])],
        arrays,
    )
    opset = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(path))
    return path


def quantized_depthwise_network(path: Path) -> Path:
    plain = depthwise_network(path.with_name("plain.onnx"))
    synthetic.quantize(plain, path)
    return path


def taken(python: str, network: Path, folder: Path) -> dict:
    command = [python, "-c", PROFILE, str(network), str(RUNS), str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(params=["host", "3.6"])
def python(request) -> str:
    return sys.executable if request.param == "host" else python36_with_runtime()


NETWORKS = (float_network, int8_network, depthwise_network, quantized_depthwise_network)


@pytest.mark.parametrize("make", NETWORKS)
def test_every_kernel_computes_or_serves_a_node_and_no_node_is_computed_twice(
    tmp_path, python, make
):
    network = make(tmp_path / "n.onnx")
    known = {node.name for node in onnx.load(str(network)).graph.node}
    kernels = taken(python, network, tmp_path)["kernels"]
    assert [k["name"] for k in kernels if not k["node"] and not k["serves"]] == []
    computed = [k["node"] for k in kernels if k["node"]]
    assert len(computed) == len(set(computed))
    assert {k["node"] or k["serves"] for k in kernels} <= known


def test_samples_runs_and_trace_are_of_the_same_runs(tmp_path, python):
    found = taken(python, float_network(tmp_path / "n.onnx"), tmp_path)
    assert {len(kernel["samples_s"]) for kernel in found["kernels"]} == {RUNS}
    assert len(found["runs_s"]) == RUNS
    trace = found["trace"]
    # Of five runs the third in order of duration; the trace has the profiler's own, truncated.
    assert trace["run_s"] + 0.5e-6 == pytest.approx(sorted(found["runs_s"])[2])
    assert [kernel["kernel"] for kernel in trace["kernels"]] == list(range(len(found["kernels"])))
    for kernel in trace["kernels"]:
        samples = found["kernels"][kernel["kernel"]]["samples_s"]
        assert kernel["latency_s"] + 0.5e-6 in [pytest.approx(sample) for sample in samples]
    ends = [kernel["start_s"] + kernel["latency_s"] for kernel in trace["kernels"]]
    starts = [kernel["start_s"] for kernel in trace["kernels"]]
    # One after the other, to the profiler's microsecond, within the run.
    assert all(start >= end - 2e-6 for start, end in zip(starts[1:], ends[:-1], strict=True))
    assert starts[0] >= 0 and ends[-1] <= trace["run_s"] + 2e-6
