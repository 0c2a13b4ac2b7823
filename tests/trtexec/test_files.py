"""trtexec's JSON files: what is written is read back, shapes are those of real files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.errors import ConfigError
from harness.records import KernelTime, Profile, Trace, TracedKernel
from harness.trtexec import files
from harness.trtexec.log import read_log
from tests.test_stats import measurement
from tests.trtexec.logs import write_log

# Every key of a call, in order, and of a layer, as in files that trtexec 8.4 and later wrote.
CALL = [
    *("startEnqMs", "endEnqMs", "startH2dMs", "endH2dMs"),
    *("startComputeMs", "endComputeMs", "startD2hMs", "endD2hMs"),
    *("h2dMs", "computeMs", "d2hMs", "latencyMs"),
]
LAYER = ["name", "timeMs", "averageMs", "medianMs", "percentage"]


def profile() -> Profile:
    """Two kernels in three runs: 1, 2, 9 us and 4, 4, 4 us; the second run is the trace."""
    first = KernelTime(
        name="conv_nchwc", op="Conv", node="/conv", latency_s=2e-6, samples_s=(1e-6, 2e-6, 9e-6)
    )
    second = KernelTime(
        name="ReorderOutput",
        op="ReorderOutput",
        node="",
        serves="/fc",
        latency_s=4e-6,
        samples_s=(4e-6,) * 3,
    )
    trace = Trace(
        run_s=8e-6,
        kernels=(
            TracedKernel(kernel=0, start_s=1e-6, latency_s=2e-6, thread=7),
            TracedKernel(kernel=1, start_s=3.5e-6, latency_s=4e-6, thread=7),
        ),
    )
    return Profile(
        network_sha256="0" * 64,
        runtime="onnxruntime",
        runtime_version="1.31",
        kernels=(first, second),
        runs_s=(6e-6, 8e-6, 15e-6),
        trace=trace,
    )


def summary(tmp_path: Path, samples_ms=(1.0, 2.0, 3.0), **options):
    (found,) = read_log(write_log(tmp_path / "run.log", samples_ms, **options))
    return found


# --- written and read back ------------------------------------------------------------------------


def test_times_have_trtexecs_keys_and_are_read_back(tmp_path):
    taken = measurement([0.001, 0.002, 0.003], [0, 0, 0])
    files.write(files.time_entries(taken), tmp_path / "times.json")
    entries = json.loads((tmp_path / "times.json").read_text())
    assert [list(entry) for entry in entries] == [CALL] * 3
    # One call right after the other: the third starts at 1 + 2 ms and ends at 6.
    third = entries[2]
    assert (third["startComputeMs"], third["endComputeMs"], third["latencyMs"]) == (3, 6, 3)
    calls = files.read_times(tmp_path / "times.json")
    assert [call.latency_s for call in calls] == [0.001, 0.002, 0.003]
    assert files.as_measurement(summary(tmp_path), calls).samples_s == taken.samples_s


def test_a_profile_has_trtexecs_keys_and_is_read_back(tmp_path):
    files.write(files.profile_entries(profile()), tmp_path / "profile.json")
    count, *layers = json.loads((tmp_path / "profile.json").read_text())
    assert count == {"count": 3}
    assert [list(layer) for layer in layers] == [LAYER] * 2
    # 1 + 2 + 9 us are 0.012 ms, a third of that the mean; 12 and 12 us are half of 24 each.
    assert layers[0] == {
        "name": "conv_nchwc",
        "timeMs": 0.012,
        "averageMs": 0.004,
        "medianMs": 0.002,
        "percentage": 50.0,
    }
    read = files.read_profile(tmp_path / "profile.json", summary(tmp_path))
    assert [(k.name, k.latency_s) for k in read.kernels] == [
        ("conv_nchwc", 2e-6),
        ("ReorderOutput", 4e-6),
    ]


def test_the_engine_explorer_keeps_every_layer_and_drops_the_count():
    # Its parser keeps entries with four or five keys (trex/parser.py, read_profiling_file).
    kept = [e for e in files.profile_entries(profile()) if len(e) in (4, 5)]
    assert [entry["name"] for entry in kept] == ["conv_nchwc", "ReorderOutput"]


def test_a_file_is_laid_out_with_one_entry_a_line_as_trtexec_does(tmp_path):
    files.write(files.profile_entries(profile()), tmp_path / "profile.json")
    lines = (tmp_path / "profile.json").read_text().splitlines()
    assert (lines[0], lines[-1]) == ("[", "]")
    assert [line[:3] for line in lines[1:-1]] == ["  {", ", {", ", {"]


def test_an_old_profile_without_runs_counts_as_one():
    one = KernelTime(name="k", op="Conv", node="/k", latency_s=0.001)
    old = Profile(network_sha256="0", runtime="r", runtime_version="1", kernels=(one,))
    assert files.profile_entries(old) == [
        {"count": 1},
        {"name": "k", "timeMs": 1, "averageMs": 1, "medianMs": 1, "percentage": 100},
    ]


def test_a_trace_shows_the_recorded_run_by_thread_in_microseconds():
    trace = files.chrome_trace(profile(), title="net.onnx")
    whole, *kernels = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert (whole["name"], whole["ts"], whole["dur"]) == ("net.onnx", 0, 8)
    assert [(e["name"], e["ts"], e["dur"], e["tid"]) for e in kernels] == [
        ("conv_nchwc", 1, 2, 7),
        ("ReorderOutput", 3.5, 4, 7),
    ]
    assert kernels[0]["args"] == {"op": "Conv", "node": "/conv", "median_us": 2}
    assert kernels[1]["args"]["serves"] == "/fc"
    assert trace["otherData"]["shows"] == "the profiled run of median duration"


def test_a_trace_without_a_recorded_run_says_that_its_starts_are_made_up():
    trace = files.chrome_trace(replace(profile(), trace=None), title="net")
    spans = [(e["ts"], e["dur"]) for e in trace["traceEvents"] if e["ph"] == "X"]
    assert spans == [(0, 6), (0, 2), (2, 4)]
    assert "no run was recorded" in trace["otherData"]["shows"]


# --- a log and its files --------------------------------------------------------------------------


def times_file(path: Path, latencies_ms, **beside) -> Path:
    entries = [
        {
            "startComputeMs": 10.0 * i,
            "h2dMs": 0.25,
            "computeMs": latency - 0.5,
            "d2hMs": 0.25,
            "latencyMs": latency,
            **beside,
        }
        for i, latency in enumerate(latencies_ms)
    ]
    path.write_text(json.dumps(entries))
    return path


def test_warm_up_calls_in_the_times_are_told_by_the_log(tmp_path):
    # 8.0 writes the two warm-up calls into the file, too; the log counts three others.
    calls = files.read_times(times_file(tmp_path / "t.json", (9.0, 8.0, 1.0, 2.0, 3.0)))
    taken = files.as_measurement(summary(tmp_path), calls)
    assert taken.samples_s == (0.001, 0.002, 0.003)
    assert taken.warmup_s == (0.009, 0.008)
    assert taken.timed == "trtexec"


def test_calls_belong_to_rounds_as_long_as_the_logs_windows(tmp_path):
    samples = [1.0 + i / 100 for i in range(25)]
    calls = files.read_times(times_file(tmp_path / "t.json", samples))
    taken = files.as_measurement(summary(tmp_path, samples), calls)
    assert taken.rounds == (0,) * 10 + (1,) * 10 + (2,) * 5


@pytest.mark.parametrize("latencies_ms", [(1.0, 2.0), (9.0, 1.0, 2.0, 3.0), (5.0, 5.0, 5.0)])
def test_times_of_another_run_are_refused(tmp_path, latencies_ms):
    calls = files.read_times(times_file(tmp_path / "t.json", latencies_ms))
    with pytest.raises(ConfigError, match="one run wrote"):
        files.as_measurement(summary(tmp_path), calls)


def test_the_names_of_older_versions_are_understood(tmp_path):
    path = tmp_path / "t.json"
    old = {"startComputeMs": 1, "inMs": 0.25, "computeMs": 1, "outMs": 0.5, "latencyMs": 1.75}
    path.write_text(json.dumps([{**old, "endToEndMs": 2}]))
    (call,) = files.read_times(path)
    assert (call.h2d_s, call.d2h_s, call.latency_s) == (0.00025, 0.0005, 0.00175)
    assert call.end_to_end_s == 0.002


def test_layers_find_their_nodes_by_tensorrts_names(tmp_path):
    names = [
        "Reformatting CopyNode for Input Tensor 0 to Conv_0 + Relu_1",
        "Conv_0 + Relu_1",
        "PWN(PWN(Sigmoid_2), Mul_3)",
        "/head/Conv",
        "(Unnamed Layer* 4) [Shuffle]",
    ]
    layers = [{"name": n, "timeMs": 2, "averageMs": 1, "percentage": 20} for n in names]
    path = tmp_path / "p.json"
    path.write_text(json.dumps([{"count": 2}, *layers]))
    nodes = ("Conv_0", "Relu_1", "Sigmoid_2", "Mul_3", "/head/Conv")
    found = files.read_profile(path, summary(tmp_path), nodes=nodes).kernels
    assert [k.node for k in found] == ["", "Conv_0", "Sigmoid_2", "/head/Conv", ""]
    assert found[0].serves == "Conv_0 + Relu_1"
    # Before 8.4 there is no median: the mean stands for it.
    assert {k.latency_s for k in found} == {0.001}


# --- what is no such file -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not"),
        ("{}", "a list of objects"),
        ("[1]", "a list of objects"),
        ("[]", "holds no call"),
        ("[" * 100_000, "is not"),
        ('[{"latencyMs": NaN}]', "NaN"),
        ('[{"latencyMs": 1e999}]', "entry 1: latencyMs"),
        ('[{"latencyMs": -1}]', "entry 1: latencyMs"),
        ('[{"latencyMs": true}]', "entry 1: latencyMs"),
        ('[{"latencyMs": "1"}]', "entry 1: latencyMs"),
        ('[{"latencyMs": null}]', "entry 1: latencyMs"),
        ('[{"latencyMs": 0}]', "entry 1: latencyMs is 0"),
        ('[{"latencyMs": 1' + "0" * 400 + "}]", "entry 1: latencyMs"),
        ('[{"latencyMs": 1' + "0" * 5000 + "}]", "is not"),
        ('[{"computeMs": 1}]', "has no latencyMs"),
        ('[{"latencyMs": 1, "computeMs": 1}]', "has no h2dMs or inMs"),
        ('[{"latencyMs":\n 1,}]', "line 2"),
    ],
)
def test_times_that_are_none_are_refused_with_file_and_entry(tmp_path, text, words):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.json") as caught:
        files.read_times(path)
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "[{}]", '[{"name": "a"}]', '[{"count": 1}, {"name": 2}]'])
def test_profiles_that_are_none_are_refused_with_their_file(tmp_path, text):
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.json"):
        files.read_profile(tmp_path / "bad.json", summary(tmp_path))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from([*CALL, *LAYER, "count", "x"]), inner, max_size=6)
    ),
    max_leaves=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.one_of(JSON.map(json.dumps), st.text(max_size=80)))
def test_any_json_is_read_or_refused_with_its_name(tmp_path, text):
    path = tmp_path / "fuzz.json"
    path.write_text(text, errors="surrogatepass")
    run = summary(tmp_path)
    for read in (files.read_times, lambda p: files.read_profile(p, run)):
        try:
            read(path)
        except ConfigError as error:
            assert "fuzz.json" in str(error)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        files.write([], tmp_path / "file" / "times.json")
