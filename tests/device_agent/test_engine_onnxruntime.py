from __future__ import annotations

import pytest

from device_agent import engine_onnxruntime


def test_kernel_time_spreads_whole_microseconds() -> None:
    # Truncated to [2, 2, 3, 3]: half of the calls were below 3 us, half above.
    assert engine_onnxruntime.kernel_latency_s([2, 2, 3, 3]) == pytest.approx(3.0e-6)
    # All in [0, 1) us: spread evenly, the median is 0.5 us, not zero.
    assert engine_onnxruntime.kernel_latency_s([0, 0, 0]) == pytest.approx(0.5e-6)
    assert engine_onnxruntime.kernel_latency_s([100, 900, 101]) == pytest.approx(101.5e-6)


def test_profile_with_unlike_runs_is_refused() -> None:
    names = ["a", "b", "a", "c"]
    with pytest.raises(ValueError, match="cannot be profiled"):
        engine_onnxruntime._chunks([{"name": name} for name in names], 2)
    with pytest.raises(ValueError, match="3 kernel calls in 2 runs"):
        engine_onnxruntime._chunks([{"name": "a"}] * 3, 2)


def test_kernels_that_share_a_name_are_kept_apart() -> None:
    events = [{"name": "", "n": n} for n in range(4)]
    first, second = engine_onnxruntime._chunks(events, 2)
    assert [event["n"] for event in first] == [0, 2]
    assert [event["n"] for event in second] == [1, 3]
