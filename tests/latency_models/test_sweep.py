import numpy as np
import onnxruntime
import pytest

from latency_models import errors, graph, sweep
from tests.latency_models.networks import residual


@pytest.fixture(scope="module")
def plan():
    return sweep.plan(graph.read(residual()))


def test_a_sweep_stays_within_a_hundred_kernels(plan):
    assert 60 <= plan.kernels <= sweep.MAX_KERNELS


def test_the_references_shapes_and_their_pruned_widths_are_measured(plan):
    shapes = {
        (w.shape.inputs, w.shape.outputs)
        for n in plan.networks
        for w in n.expected.values()
        if w.kind == "conv_3x3"
    }
    # The residual network's block is 32 to 32; pruned widths are 24, 16 and 8.
    widths = {8, 16, 24, 32}
    assert len([s for s in shapes if set(s) <= widths]) >= 2


def test_both_precisions_are_covered(plan):
    kinds = {(w.kind, w.precision) for n in plan.networks for w in n.expected.values()}
    for kind in ("conv_1x1", "conv_3x3", "conv_direct", "conv_depthwise", "gemm", "binary"):
        assert {(kind, "fp32"), (kind, "int8")} <= kinds


def test_networks_run_on_an_old_runtime_format(plan):
    for network in (*plan.networks, *plan.probes):
        assert network.model.ir_version <= 8
        assert network.model.opset_import[0].version == 13


def test_networks_run_and_stay_finite(plan):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    for network in (*plan.networks, *plan.probes):
        session = onnxruntime.InferenceSession(
            network.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        feed = {i.name: np.ones(i.shape, np.float32) for i in session.get_inputs()}
        assert all(np.isfinite(out).all() for out in session.run(None, feed))


def test_profile_rows_become_samples(plan):
    packed = plan.networks[0]
    rows = [(name, "", name, 1e-5) for name in packed.expected]
    found = sweep.collect(packed, [r for r in rows if "/" not in r[0]])
    assert len(found) >= len(packed.expected) / 2
    assert {seconds for _, seconds in found} == {1e-5}


def test_a_profile_of_something_else_is_refused(plan):
    with pytest.raises(errors.CalibrationError, match="fuses otherwise"):
        sweep.collect(plan.networks[0], [("odd", "Conv", "odd", 1e-5)])


def test_precisions_that_cannot_be_built_are_refused():
    with pytest.raises(errors.CalibrationError, match="fp32 and int8 can"):
        sweep.plan(precisions=["fp16"])


def test_one_precision_makes_one_sort_of_network():
    plan = sweep.plan(precisions=["fp32"])
    assert {n.precision for n in (*plan.networks, *plan.probes)} == {"fp32"}
