"""trtexec's summary of a measurement whose calls were taken apart, by hand."""

from dataclasses import replace

import pytest

from harness.records import CallParts, EngineFacts, dump, load
from harness.records import Measurement as Record
from harness.trtexec import files, summary
from tests.tensorrt.test_rebuilds import measured

PARTS = CallParts(
    h2d_s=(1e-4, 3e-4, 2e-4),
    compute_s=(1e-3, 2e-3, 6e-3),
    d2h_s=(2e-4, 2e-4, 2e-4),
    enqueue_s=(5e-4, 5e-4, 8e-4),
)


def taken():
    return replace(
        measured("net.onnx", 1.0),
        samples_s=(2e-3, 3e-3, 7e-3),
        rounds=(0, 0, 1),
        parts=PARTS,
        engine=EngineFacts(sha256="a" * 64, size_bytes=1000, build_s=2.0),
    )


def test_every_time_is_summed_up_as_trtexec_does():
    found = summary.of(taken(), percentile=90)
    times = dict(found.times)
    assert list(times)[:5] == [
        "Latency",
        "Enqueue Time",
        "H2D Latency",
        "GPU Compute Time",
        "D2H Latency",
    ]
    # Copies in, compute and copies out of each call: 1.3, 2.5 and 6.4 ms.
    latency = times["Latency"]
    assert (latency.min_s, latency.max_s) == pytest.approx((1.3e-3, 6.4e-3))
    assert latency.mean_s == pytest.approx(10.2e-3 / 3)
    assert latency.median_s == pytest.approx(2.5e-3)
    # Of three calls 90 % leave out int(0.1 * 3) = 0: the largest.
    assert latency.percentiles == ((90, pytest.approx(6.4e-3)),)
    assert times["Host Call"].median_s == 3e-3
    # Three calls in 12 ms.
    assert found.throughput_per_s == pytest.approx(250)


def test_without_parts_there_is_nothing_to_sum_up():
    assert summary.of(measured("net.onnx", 1.0)) is None


def test_exported_calls_have_their_copies_and_read_back():
    entries = files.time_entries(taken())
    first, second = entries[0], entries[1]
    assert first["h2dMs"] == 0.1 and first["computeMs"] == 1.0 and first["d2hMs"] == 0.2
    assert first["latencyMs"] == 1.3
    assert first["startComputeMs"] == first["endH2dMs"] == 0.1
    assert first["endComputeMs"] == first["startD2hMs"] == 1.1
    assert first["endEnqMs"] == 0.5
    # The second call begins where the first one ended on the host.
    assert second["startH2dMs"] == 2.0


def test_a_measurement_with_parts_and_engine_survives_the_store():
    record = taken()
    assert load(Record, dump(record)) == record


def test_parts_of_other_calls_are_refused():
    with pytest.raises(ValueError, match="of other calls"):
        replace(measured("net.onnx", 1.0), parts=PARTS)
    with pytest.raises(ValueError, match="one value a call"):
        CallParts(h2d_s=(1.0,), compute_s=(1.0, 2.0), d2h_s=(1.0,), enqueue_s=(1.0,))
    with pytest.raises(ValueError, match="not negative"):
        CallParts(h2d_s=(-1.0,), compute_s=(1.0,), d2h_s=(1.0,), enqueue_s=(1.0,))
