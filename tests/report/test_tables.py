"""Tables as a terminal and as a pipe get them."""

import io
import json
from dataclasses import dataclass, replace

import pytest
from rich.console import Console

from harness import verdict
from harness.records import (
    BoardSpec,
    Conditions,
    Interval,
    KernelTime,
    Measurement,
    Profile,
    SweepTimes,
)
from harness.report import fitted, tables
from tests.report.conftest import FACTS, NASTY


def text(renderable, width=tables.PIPE_WIDTH):
    out = io.StringIO()
    tables.show(renderable, console=Console(file=out, width=width, highlight=False))
    return out.getvalue()


@dataclass(frozen=True)
class Row:
    network: str
    precision: str
    predicted_s: float
    interval: Interval
    measured_s: float
    measured_interval: Interval
    error: float


def validation_row(name, predicted, measured):
    return Row(
        network=name,
        precision="fp32",
        predicted_s=predicted,
        interval=Interval(0.9 * predicted, 1.1 * predicted, 0.9),
        measured_s=measured,
        measured_interval=Interval(0.99 * measured, 1.01 * measured, 0.95),
        error=predicted / measured - 1,
    )


def measurement(**more):
    fields = {
        "label": "tiny.onnx",
        "network_sha256": "0" * 64,
        "runtime": "onnxruntime",
        "runtime_version": "1.23.2",
        "precision": "fp32",
        "batch": 1,
        "threads": 1,
        "samples_s": tuple((1 + i / 100) * 1e-3 for i in range(101)),
        "rounds": tuple(i // 10 for i in range(101)),
        "warmup_s": (),
        "before": Conditions(),
        "after": Conditions(),
        "board": "local",
        "campaign": "c",
        "taken_at": "2026-03-01T09:30:00+00:00",
    }
    return Measurement(**(fields | more))


def test_the_summary_holds_verdict_numbers_and_warnings(result, tmp_path):
    shown = text(fitted.fit_summary(result, report=tmp_path / "report.html"))
    for value in (
        "Meets 22 % of the baseline's latency on local: 612 µs (21.4 %)",
        "605 to 620 µs (95%)",
        "551 to 678 µs (90%)",
        "640 samples",
        "287 kB",
        "92.54 %",
        "-0.58 points",
        "int8 only: Misses the latency budget with 34.3 % against 22 %",
        "warning: joint 3: the load",
    ):
        assert value in shown
    assert "report.html" in shown.replace("\n", "")


def test_a_pipe_gets_no_colour_codes(result, capsys):
    fitted.print_fit(result)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= tables.PIPE_WIDTH
    assert "…" not in out


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_number_is_cut_at_any_width(result, width):
    shown = text(fitted.fit_summary(result), width)
    assert max(map(len, shown.splitlines())) <= width
    assert "…" not in shown
    assert "98.4 %" in shown


def test_the_summary_without_a_result_shows_the_nearest_budgets(infeasible):
    shown = text(fitted.fit_summary(infeasible))
    assert "No network was built for local" in shown
    assert "11.8 % of the baseline" in shown
    assert "No allocation reaches 5 %" in shown


def test_the_summary_of_a_fake_result_says_so(result):
    assert "fake engine" in text(fitted.fit_summary(replace(result, fake=True)))


def test_brackets_in_names_are_no_markup(nasty):
    assert "[bold]" in text(fitted.fit_summary(nasty))
    assert NASTY in text(tables.facts_table(replace(FACTS, hostname=NASTY)))


def test_a_measurement_shows_median_and_n():
    shown = text(tables.measurement_table([measurement()]))
    assert "1.50 ms" in shown  # the middle one of 1.00 to 2.00 ms
    assert "101" in shown
    assert "onnxruntime 1.23.2 on local" in shown


def test_a_profile_shows_shares_of_the_sum():
    kernels = (
        KernelTime(name="conv1", op="Conv", node="conv1", latency_s=3e-4),
        KernelTime(name="fc", op="Gemm", node="fc", latency_s=1e-4),
    )
    profile = Profile(
        network_sha256="0" * 64, runtime="onnxruntime", runtime_version="1.23.2", kernels=kernels
    )
    shown = text(tables.profile_table(profile))
    assert "75.0 %" in shown
    assert "25.0 %" in shown
    assert "400 µs" in shown


def test_validation_shows_errors_and_how_many_lie_inside():
    rows = [validation_row("resnet", 1.05e-3, 1e-3), validation_row("vgg", 7e-3, 1e-2)]
    shown = text(tables.validation_table(rows))
    assert "+5.0 %" in shown
    assert "-30.0 %" in shown
    # The median of 5 % and 30 % is 17.5 %; 10 ms is above 7.7 ms.
    assert "2 networks: median absolute error 17.5 %, largest 30.0 %" in shown
    assert "1 of 2 inside the interval" in shown


def test_validation_of_nothing_is_an_empty_table():
    assert "network" in text(tables.validation_table([]))


def test_boards_are_listed():
    nano = BoardSpec(name="nano", host="jetson-nano", profile="nano-4gb", power_mode="MAXN")
    shown = text(tables.boards_table([BoardSpec(name="local"), nano]))
    assert "this computer" in shown
    assert "jetson-nano" in shown
    assert "MAXN" in shown


INTERVAL = Interval(3.5e-4, 4.5e-4, 0.9)


@dataclass(frozen=True)
class Predicted:
    network: str = "tiny.onnx"
    latency_s: float = 4e-4
    interval: Interval = INTERVAL
    kernels: tuple = (("conv1", "conv", "fp32", 2.4e-4, 1.25), ("fc", "gemm", "int8", 1e-4, 1.0))
    unsupported: tuple = (("gemm", "int8"),)


def test_a_prediction_shows_its_interval_kernels_and_what_was_never_measured():
    shown = text(tables.prediction_table(Predicted()))
    assert "tiny.onnx: 400 µs predicted, 350 to 450 µs (90 %)" in shown
    # 240 us by the formula, 300 us with what was learned: three quarters of the kernels' 400 us.
    assert "75.0 %" in shown
    assert "240 µs" in shown
    assert "+25.0%" in shown
    assert "gemm int8" in shown


def test_json_holds_the_numbers_unrounded():
    (row,) = tables.validation_json([validation_row("resnet", 1.05e-3, 1e-3)])
    assert row["error"] == 1.05e-3 / 1e-3 - 1
    predicted = tables.prediction_json(Predicted())
    assert predicted["interval_s"] == {"low": 3.5e-4, "high": 4.5e-4, "coverage": 0.9}
    assert predicted["unsupported"] == ["gemm int8"]
    assert predicted["kernels"][0]["latency_s"] == 2.4e-4 * 1.25
    assert predicted["kernels"][0]["formula_s"] == 2.4e-4
    profile = Profile(network_sha256="0", runtime="r", runtime_version="1", kernels=())
    found = verdict.judge(measurement())
    taken = tables.profile_json(measurement(), profile, verdict=found)
    assert taken["measurement"]["latency_s"] == 1.5e-3
    # The 91st of 101 sorted samples; p99 needs 662.
    values = {row["percent"]: row["value_s"] for row in taken["verdict"]["percentiles"]}
    assert values == {50: 1.5e-3, 90: pytest.approx(1.9e-3), 99: None}
    assert len(taken["measurement"]["samples_s"]) == 101
    json.dumps([row, predicted, taken], allow_nan=False)


@dataclass(frozen=True)
class Parameter:
    name: str
    value: float
    unit: str
    prior: float
    uncertainty: float


@dataclass(frozen=True)
class Model:
    parameters: tuple = (
        Parameter("eta[conv,fp32]", 0.61, "1", 0.5, 0.04),
        Parameter("eta[gemm,fp32]", 0.77, "1", 0.5, 0.9),
        Parameter("c0", 12.5, "us", 10.0, 1.5),
    )
    measured_groups: tuple = (("conv", "fp32"),)
    kernel_samples: tuple = (None,) * 90
    network_samples: tuple = (None,) * 8
    residual_: float = 0.2
    held_out_: tuple = ((0.0, 0.03), (0.02, 0.03), (-0.1, 0.03))

    def roofs(self):
        return {"fp32": 8.6e11}, 2.1e10


def test_a_latency_model_shows_roofs_held_out_errors_and_uncertainties():
    shown = text(tables.latency_model_table(Model()))
    assert "90 kernels and 8 networks" in shown
    assert "fp32 860 G MACs/s" in shown
    assert "21.0 GB/s" in shown
    # exp(0.02) is 1.0202, exp(-0.1) is 0.9048
    assert "median absolute error 2.0 %, largest 9.5 %" in shown
    assert "4.0 %" in shown
    assert "1.5 us" in shown
    assert "differ from the formula by 20 %" in shown
    assert "eta[conv,fp32]" in shown
    # Never measured: nothing was fitted.
    assert "gemm" not in shown


def test_the_times_of_a_calibration_are_told_apart():
    times = SweepTimes(
        planned_s=14.3,
        budget_s=180.0,
        measure_s=17.1,
        build_s=8.55,
        fit_s=3.33,
        kernels=100,
        networks=17,
        kept=4,
    )
    shown = str(tables.times_text(times))
    for part in ("17.1 s of measuring", "14.3 s planned", "180 s allowed", "8.55 s of building"):
        assert part in shown
    assert "3.33 s of choosing" in shown and "4 of them kept" in shown
