"""Predictions of real boards, where their published measurements are at hand."""

from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks import latency_models as benchmark

DATA = Path(__file__).parents[3] / "shared" / "measured"
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="no ../shared/measured: published measurements are not at hand"
)


@needs_data
def test_knowing_the_whole_networks_time_predicts_its_pruned_variants_better():
    # A TX2: fitted to the network at full width in one power mode, half widths are predicted in
    # all three. Of what the model gets wrong in both, the anchor knows.
    data = benchmark.load(DATA, "tx2")

    def same(item):
        return tuple(item.labels[key] for key in ("precision", "power_mode", "batch"))

    whole = [item.labels["width_percent"] == "100.0" for item in data.items]
    fitted = [
        index
        for index, item in enumerate(data.items)
        if whole[index] and item.labels["power_mode"] == "maxn"
    ]
    model = benchmark.fit(data, fitted, unlike=True)
    full = {same(item): item for item, at_full in zip(data.items, whole, strict=True) if at_full}
    halves = [item for item in data.items if item.labels["width_percent"] == "50.0"]
    plain, anchored = [], []
    for item in halves:
        there, base = model.at(item.scales), full[same(item)]
        plain.append(there.predict(item.works) / item.seconds - 1)
        relative = there.predict_relative(item.works, base.works, base.seconds)
        anchored.append(relative / item.seconds - 1)
    assert len(halves) == 48
    assert np.abs(anchored).mean() < 0.05
    assert np.abs(anchored).mean() < np.abs(plain).mean()


@needs_data
@pytest.mark.parametrize(
    ("key", "most"), [("nano_trt_fp16_loo", 5.0), ("nano_trt_fp16_family", 10.0)]
)
def test_eighteen_networks_on_a_nano_predict_each_other(key, most):
    scored = benchmark.score(benchmark.run(DATA, key, 0))
    assert scored["mape"] < most
    assert scored["n"] == 18
    assert scored["coverage90"] > 80


@needs_data
def test_identical_graphs_stay_on_one_side_of_every_split():
    for name in ("timm_ort_fp32_cpu", "xavier", "orin"):
        data = benchmark.load(DATA, name)
        for protocol in benchmark.PROTOCOLS:
            if protocol.data != name:
                continue
            for fit, test in protocol.splits(data, 0):
                twins = {data.items[index].twin for index in fit}
                assert twins.isdisjoint(data.items[index].twin for index in test)
                assert sorted(fit + test) == list(range(len(data.items)))
