"""Logs of trtexec: three real ones, hand-made ones, and what is none."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import stats
from harness.errors import ConfigError
from harness.records import ImportedSummary, dump, load
from harness.trtexec.log import contradictions, read_log
from tests.trtexec.logs import log_text, write_log

NANO = Path(__file__).resolve().parents[3] / "shared/measured/jetson_nano"
LOGS = ("deeplab_edgetpu_s_fp16", "efficientdet-lite0_fp16", "fast_scnn_384x384")
TEN = (5.0, 1.0, 2.0, 3.0, 4.0, 6.0, 7.0, 8.0, 9.0, 10.0)


@pytest.fixture(params=LOGS)
def real(request) -> ImportedSummary:
    path = NANO / "trtexec_logs" / f"{request.param}.log"
    if not path.exists():
        pytest.skip(f"measured data is absent: {path}")
    (found,) = read_log(path)
    return found


def rows() -> list[dict[str, str]]:
    path = NANO / "trtexec_runs.csv"
    if not path.exists():
        pytest.skip(f"measured data is absent: {path}")
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


# --- real logs ------------------------------------------------------------------------------------


def test_a_real_log_gives_the_row_that_was_parsed_from_it_before(real):
    (row,) = (row for row in rows() if row["cmd"] == real.command)
    assert (real.runtime_version, row["trt_version"]) == ("8.0.1", "8001")
    assert real.precision == row["precision"]
    assert real.label.removesuffix(".onnx") == row["model"]
    assert real.calls == int(row["n_queries"])
    assert real.layers == int(row["n_gpu_layers"])
    assert real.engine_bytes == float(row["engine_mb"]) * 2**20
    assert real.gpu_clock_hz == pytest.approx(float(row["gpu_clock_ghz"]) * 1e9)
    assert real.batch == int(row["input_dims"].split("x")[0])
    assert real.throughput_per_s == float(row["throughput_qps"])
    names = {
        "gpu_compute": "GPU Compute Time",
        "host_latency": "Latency",
        "e2e_host": "End-to-End Host Latency",
        "enqueue": "Enqueue Time",
        "h2d": "H2D Latency",
        "d2h": "D2H Latency",
    }
    for column, name in names.items():
        time = real.times[name]
        assert time.mean_s * 1e3 == pytest.approx(float(row[f"{column}_mean_ms"]), rel=1e-9)
        assert time.median_s * 1e3 == pytest.approx(float(row[f"{column}_median_ms"]), rel=1e-9)
    gpu = real.times["GPU Compute Time"]
    assert gpu.min_s * 1e3 == pytest.approx(float(row["gpu_compute_min_ms"]), rel=1e-9)
    assert gpu.max_s * 1e3 == pytest.approx(float(row["gpu_compute_max_ms"]), rel=1e-9)


def test_a_real_log_contradicts_itself_in_nothing(real):
    assert real.warnings == ()
    # All whole windows of ten calls were averaged, and nothing else.
    assert [window.calls for window in real.windows] == [10] * (real.calls // 10)


def test_the_99th_percentile_of_a_real_log_leaves_out_as_many_calls_as_ours(real):
    # int(0.01 * n) calls are left out: none of 33 and 77, one of 165. With none left out the
    # percentile is the maximum itself; with one it is the second largest of 165 distinct times.
    left_out = real.calls - 1 - stats.percentile(range(real.calls), 99)
    assert left_out == {33: 0, 77: 0, 165: 1}[real.calls]
    for name, time in real.times.items():
        ((percent, value_s),) = time.percentiles
        assert percent == 99
        if left_out == 0:
            assert value_s == time.max_s, name
        else:
            assert time.median_s < value_s < time.max_s, name


def test_the_mean_of_the_windows_is_the_mean_of_all_calls_up_to_those_in_no_window(real):
    latency = real.times["Latency"]
    counted = sum(window.calls for window in real.windows)
    in_windows_s = sum(window.calls * window.latency_s for window in real.windows)
    rest_s = real.calls * latency.mean_s - in_windows_s
    rest = real.calls - counted
    # The rest's mean lies between the extremes; six digits of the sum are the slack.
    slack_s = 1e-5 * real.calls * latency.mean_s
    assert rest * latency.min_s - slack_s <= rest_s <= rest * latency.max_s + slack_s


def test_every_row_of_the_table_of_parsed_runs_is_consistent():
    for row in rows():
        value = {key: float(row[key]) for key in row if key.endswith("_ms")}
        low, high = value["gpu_compute_min_ms"], value["gpu_compute_max_ms"]
        assert low <= value["gpu_compute_median_ms"] <= high
        assert low <= value["gpu_compute_mean_ms"] <= high
        parts = value["h2d_mean_ms"] + value["gpu_compute_mean_ms"] + value["d2h_mean_ms"]
        assert parts == pytest.approx(value["host_latency_mean_ms"], rel=2e-5)


def test_a_summary_survives_the_store_unchanged(real):
    assert load(ImportedSummary, dump(real)) == real


# --- hand-made logs -------------------------------------------------------------------------------


def test_statistics_windows_and_options_are_read(tmp_path):
    (found,) = read_log(write_log(tmp_path / "a.log", TEN, percents=(90, 99)))
    latency = found.times["Latency"]
    # Of 1 to 10 ms: the mean is 55 / 10, the median (5 + 6) / 2; p90 leaves out one call.
    assert (latency.min_s, latency.max_s) == (0.001, 0.01)
    assert (latency.mean_s, latency.median_s) == (0.0055, 0.0055)
    assert latency.percentiles == ((90.0, 0.009), (99.0, 0.01))
    assert [(window.calls, window.latency_s) for window in found.windows] == [(10, 0.0055)]
    assert (found.calls, found.warmup_calls, found.batch, found.threads) == (10, 2, 1, 1)
    assert (found.runtime_version, found.precision) == ("8.0.1", "fp16")
    assert (found.device, found.board) == ("NVIDIA Tegra X1",) * 2
    assert found.taken_at == "2022-01-15T17:01:08"
    assert found.label == "net.onnx"
    assert found.warnings == ()


@pytest.mark.parametrize("percent", [0, 1, 50, 90, 95, 99, 100])
@pytest.mark.parametrize("count", [1, 2, 10, 64, 99, 100, 101, 200, 662])
def test_our_percentile_is_the_one_that_whole_numbers_give(percent, count):
    # trtexec leaves out int((1 - p / 100) * n) in single precision. (100 - p) * n / 100 in whole
    # numbers is the same but where it is whole: there (1 - 0.99f) * 100 is a little less than 1.
    samples = list(range(count))
    excluded = (100 - percent) * count // 100
    exact = (100 - percent) * count % 100 == 0
    expected = {max(0, count - 1 - excluded)}
    if exact and 0 < percent < 100:
        expected.add(max(0, count - excluded))
    assert stats.percentile(samples, percent) in expected


@pytest.mark.parametrize(
    ("printed", "version"), [("8001", "8.0.1"), ("8601", "8.6.1"), ("100300", "10.3.0")]
)
def test_versions_are_read_as_people_write_them(tmp_path, printed, version):
    (found,) = read_log(write_log(tmp_path / "a.log", TEN, version=printed))
    assert found.runtime_version == version


def test_a_later_log_without_end_to_end_times_is_read(tmp_path):
    options = {"version": "8503", "end_to_end": False, "percents": (90, 95, 99)}
    (found,) = read_log(write_log(tmp_path / "a.log", TEN, **options))
    assert "End-to-End Host Latency" not in found.times
    assert found.windows[0].end_to_end_s is None
    assert found.windows[0].enqueue_s == 0.0005
    assert [percent for percent, _ in found.times["Latency"].percentiles] == [90, 95, 99]


def test_each_run_of_a_log_of_several_is_its_own(tmp_path):
    path = tmp_path / "both.log"
    path.write_text("make: entering\n" + log_text(TEN, net="a.onnx") + log_text((3.0,) * 20))
    first, second = read_log(path, board="nano", power_mode="MAXN")
    assert (first.label, second.label) == ("a.onnx", "net.onnx")
    assert (first.calls, second.calls) == (10, 20)
    assert first.source_sha256 != second.source_sha256
    assert (second.board, second.power_mode) == ("nano", "MAXN")


def test_the_network_is_known_by_its_hash_when_it_is_at_hand(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"abc")
    log = write_log(tmp_path / "a.log", TEN)
    (found,) = read_log(log, network=tmp_path / "net.onnx")
    # The SHA-256 of "abc", from FIPS 180-2's example.
    assert found.network_sha256.startswith("ba7816bf8f01cfea414140de5dae2223")
    assert read_log(log)[0].network_sha256 == ""


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("Latency", {"median_s": 0.02}, "not between"),
        ("Latency", {"percentiles": ((99.0, 0.008),)}, "percentile"),
        ("GPU Compute Time", {"percentiles": ((100.0, 0.02),)}, "percentile"),
        ("Latency", {"percentiles": ((101.0, 0.01),)}, "no percentile"),
        ("H2D Latency", {"mean_s": 0.001, "max_s": 0.001}, "not the sum"),
    ],
)
def test_what_cannot_be_is_named(tmp_path, name, change, words):
    (found,) = read_log(write_log(tmp_path / "a.log", TEN))
    wrong = replace(found, times={**found.times, name: replace(found.times[name], **change)})
    assert any(words in text for text in contradictions(wrong)), contradictions(wrong)


def test_windows_outside_of_the_range_are_named(tmp_path):
    (found,) = read_log(write_log(tmp_path / "a.log", TEN))
    wrong = replace(found, windows=(replace(found.windows[0], latency_s=0.02),))
    assert contradictions(wrong) == ("1 averages of windows lie outside of the latency's range",)


# --- what is no log -------------------------------------------------------------------------------


def test_a_log_that_was_cut_off_names_the_file_and_the_lines(tmp_path):
    path = tmp_path / "cut.log"
    path.write_text("".join(log_text(TEN).splitlines(keepends=True)[:9]))
    with pytest.raises(ConfigError, match=r"cut\.log, lines 1 to 9: no line 'Timing trace has"):
        read_log(path)


HEADER = "&&&& RUNNING TensorRT.trtexec{} # trtexec --onnx=net.onnx\n"
FAILED = "[05/01/2022-10:00:00] [E] no room\n[05/01/2022-10:00:01] [E] no engine\n&&&& FAILED "


@pytest.mark.parametrize(
    ("version", "rest", "words"),
    [
        ("", "", "it is of a trtexec that names no version, and times are read from TensorRT 8.0"),
        (" [TensorRT v7203]", "", "it is of TensorRT 7.2.3, and times are read from TensorRT 8.0"),
        (" [TensorRT v8201]", f"{FAILED}TensorRT.trtexec\n", r"trtexec failed \(no room\); mend"),
        (" [TensorRT v8201]", "&&&& FAILED TensorRT.trtexec", "failed .it does not say why.; mend"),
        (" [TensorRT v8201]", "", "was cut off or was not to time anything; run it again"),
    ],
)
def test_a_log_without_times_says_why_and_what_to_do(tmp_path, version, rest, words):
    path = tmp_path / "odd.log"
    path.write_text(HEADER.format(version) + rest)
    with pytest.raises(ConfigError, match=rf"no line 'Timing trace has \.\.\.': .*{words}"):
        read_log(path)


def test_a_line_that_was_cut_off_is_named(tmp_path):
    text = log_text(TEN)
    path = tmp_path / "cut.log"
    path.write_text(text[: text.index("median = ") + 3])
    with pytest.raises(ConfigError, match=r"cut\.log, line 15: .*cut off"):
        read_log(path)


@pytest.mark.parametrize("number", ["nan", "inf", "-1", "1.2.3", "1e999", "abc"])
def test_a_number_that_is_no_time_is_named_with_its_line(tmp_path, number):
    path = tmp_path / "odd.log"
    path.write_text(log_text(TEN).replace("median = 5.5", f"median = {number}", 1))
    with pytest.raises(ConfigError, match=r"odd\.log, line 15"):
        read_log(path)


def test_a_huge_line_is_neither_kept_nor_searched(tmp_path):
    path = tmp_path / "huge.log"
    lines = log_text(TEN).splitlines()
    lines.insert(6, "[01/15/2022-16:58:51] [I] [TRT] [GpuLayer] " + "PWN(" * 2_000_000)
    path.write_text("\n".join(lines))
    (found,) = read_log(path)
    assert found.layers == 2


def test_a_line_of_a_thousand_percentiles_is_refused_with_its_number(tmp_path):
    path = tmp_path / "many.log"
    path.write_text(log_text(TEN).replace(" ms\n", " ms" + ", percentile(9%) = 1 ms" * 1000 + "\n"))
    with pytest.raises(ConfigError, match=r"many\.log, line 15: 100\d percentiles"):
        read_log(path)


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"hello\nworld\n", b"\xff\xfe" * 50])
def test_a_file_that_is_no_log_is_called_so(tmp_path, content):
    (tmp_path / "x.log").write_bytes(content)
    with pytest.raises(ConfigError, match=r"x\.log is no trtexec log"):
        read_log(tmp_path / "x.log")


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path in (tmp_path / "gone.log", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_log(path)


LINES = log_text(TEN).splitlines()
FRAGMENTS = st.one_of(
    st.sampled_from(LINES),
    st.text(max_size=60),
    st.tuples(st.sampled_from(LINES), st.text(max_size=8), st.integers(0, 120)).map(
        lambda t: t[0][: t[2]] + t[1] + t[0][t[2] :]
    ),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(st.lists(FRAGMENTS, max_size=30), st.booleans())
def test_whatever_is_in_a_log_is_read_or_refused_with_its_name(tmp_path, lines, headed):
    path = tmp_path / "fuzz.log"
    path.write_text("\n".join(LINES[:1] * headed + lines), errors="surrogatepass")
    try:
        found = read_log(path)
    except ConfigError as error:
        assert "fuzz.log" in str(error)
    else:
        assert all(load(ImportedSummary, dump(run)) == run for run in found)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.data())
def test_a_good_log_with_damaged_bytes_is_read_or_refused_with_its_name(tmp_path, data):
    content = bytearray(log_text(TEN), "ascii")
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "fuzz.log"
    path.write_bytes(content)
    try:
        read_log(path)
    except ConfigError as error:
        assert "fuzz.log" in str(error)
