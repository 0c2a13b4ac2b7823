"""Several builds of one file: the fastest is kept, and the spread is told with its interval."""

import pytest

from harness.records import BuildSettings, Conditions, EngineFacts, Measurement
from harness.tensorrt import rebuilds


def measured(label, factor, *, sha="a", campaign="c", rounds=12):
    # Ten calls a round; a little pattern that all share, so that ratios are exact.
    samples = [factor * (1e-3 + 1e-6 * (i % 10)) for i in range(10 * rounds)]
    state = Conditions()
    return Measurement(
        label=label,
        network_sha256="0" * 64,
        runtime="tensorrt",
        runtime_version="8.2.1",
        precision="fp16",
        batch=1,
        threads=1,
        samples_s=tuple(samples),
        rounds=tuple(i // 10 for i in range(len(samples))),
        warmup_s=(),
        before=state,
        after=state,
        board="nano",
        campaign=campaign,
        taken_at="2026-01-01T00:00:00+00:00",
        engine=None if sha is None else EngineFacts(sha256=sha * 64, size_bytes=10),
    )


def test_the_fastest_build_is_kept_and_the_spread_is_told():
    found = rebuilds.choose([measured("n", 1.0), measured("b", 0.8, sha="b"), measured("c", 1.2)])
    assert found.kept == 1
    # The slowest over the fastest: 1.2 / 0.8.
    assert found.spread == pytest.approx(0.5)
    assert found.spread_interval.low == pytest.approx(0.5)
    # Of 1, 0.8 and 1.2: the root of (0.04 + 0.04) / 3, by the mean of 1.
    assert found.deviation == pytest.approx((0.08 / 3) ** 0.5)
    assert found.distinct == 2
    assert found.matters


def test_one_build_has_no_spread():
    found = rebuilds.choose([measured("n", 1.0)])
    assert (found.kept, found.spread, found.deviation, found.distinct) == (0, 0.0, 0.0, 1)
    assert not found.matters


def test_what_is_not_known_of_the_engines_is_not_counted():
    assert rebuilds.choose([measured("n", 1.0, sha=None), measured("b", 1.1)]).distinct is None


def test_builds_of_different_campaigns_are_not_held_against_each_other():
    with pytest.raises(ValueError, match="one campaign"):
        rebuilds.choose([measured("n", 1.0), measured("b", 1.1, campaign="d")])
    with pytest.raises(ValueError, match="one campaign"):
        rebuilds.choose([])


def test_each_build_has_its_own_number_and_label():
    build = BuildSettings(flags=("fp16",))
    found = rebuilds.variants("net.onnx", build, 3)
    assert [label for label, _ in found] == ["net.onnx", "net.onnx build 2", "net.onnx build 3"]
    assert [one.rebuild for _, one in found] == [0, 1, 2]
    assert {one.flags for _, one in found} == {("fp16",)}
    with pytest.raises(ValueError, match="1 to 8"):
        rebuilds.variants("net.onnx", build, 9)
