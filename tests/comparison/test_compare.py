"""Two runs held against each other, on numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.comparison.compare import Run, compare
from harness.comparison.differences import difference_of, judge
from harness.comparison.kernel_changes import keys
from harness.errors import ConfigError, StableBoardError
from harness.profiles import join
from harness.records import (
    BoardSettings,
    Conditions,
    Interval,
    KernelTime,
    Measurement,
    Profile,
    Telemetry,
    TelemetrySample,
)
from harness.store import MUST_MATCH
from harness.trtexec.log import read_log
from tests.test_stats import measurement
from tests.trtexec.logs import write_log


def run(samples, rounds=None, **fields) -> Run:
    rounds = list(range(len(samples))) if rounds is None else rounds
    taken = replace(measurement(samples, rounds), **fields)
    return Run(source=taken.label, record=taken)


def profile(*kernels: KernelTime) -> Profile:
    return Profile(network_sha256="0" * 64, runtime="fake", runtime_version="1", kernels=kernels)


def kernel(node, latency_s, *, name=None, op="Conv", serves="", samples_s=()) -> KernelTime:
    return KernelTime(
        name=name or node,
        op=op,
        node=node,
        latency_s=latency_s,
        serves=serves,
        samples_s=tuple(samples_s),
    )


LATER = {"taken_at": "2026-01-02T00:00:00Z"}


# --- in total -------------------------------------------------------------------------------------


def test_interleaved_runs_are_compared_by_rounds_so_that_drift_cancels():
    # The board slows down to half its speed in between: B takes 10 % more in every round.
    a = run([0.010, 0.010, 0.020, 0.020], [0, 0, 1, 1])
    b = run([0.011, 0.011, 0.022, 0.022], [0, 0, 1, 1], label="b", network_sha256="1" * 64)
    found = compare(a, b)
    total = found.total
    assert (total.basis, total.rounds) == ("rounds", 2)
    assert total.ratio == pytest.approx(1.1)
    assert total.ratio_interval.low == pytest.approx(1.1)
    assert total.ratio_interval.high == pytest.approx(1.1)
    # 10 % of A's median, which is (10 + 20) / 2 ms.
    assert total.difference_s == pytest.approx(0.0015)
    assert judge(total, limit=0.03) == "slower"
    assert any("drift cancels" in note for note in found.notes)


def test_runs_of_one_command_at_two_times_are_not_taken_for_interleaved():
    # The campaign has the same name, and the rounds the same numbers.
    a, b = run([0.010, 0.012]), run([0.011, 0.013], **LATER)
    found = compare(a, b)
    assert found.total.basis == "independent"
    assert any("drift between the two" in note for note in found.notes)


def test_runs_in_the_same_second_under_other_conditions_are_not_taken_for_interleaved():
    a = run([0.010, 0.012])
    b = run([0.010, 0.012], label="b", before=Conditions(temp_c=40.0))
    assert compare(a, b).total.basis == "independent"


def test_independent_intervals_add_in_squares():
    a_s, a = 10.0, Interval(9, 12, 0.95)
    b_s, b = 20.0, Interval(17, 24, 0.95)
    found = difference_of(a_s, a, b_s, b)
    # B below its median by 3, A above by 2: sqrt(9 + 4) = 3.6056; B above by 4, A below by 1:
    # sqrt(16 + 1) = 4.1231.
    assert found.difference_s == 10
    assert found.difference_interval_s.low == pytest.approx(10 - 3.605551)
    assert found.difference_interval_s.high == pytest.approx(10 + 4.123106)
    # Logs: ln(20/17) = 0.16252, ln(12/10) = 0.18232, together 0.24424: 2 * exp(-0.24424);
    # ln(24/20) = 0.18232, ln(10/9) = 0.10536, together 0.21057: 2 * exp(0.21057).
    assert found.ratio == 2
    assert found.ratio_interval.low == pytest.approx(1.56661, rel=1e-4)
    assert found.ratio_interval.high == pytest.approx(2.46877, rel=1e-4)


def test_one_round_gives_no_interval():
    found = compare(run([0.01], [0]), run([0.02], [0], **LATER))
    assert found.total.ratio == 2
    assert (found.total.ratio_interval, found.total.basis) == (None, "none")
    assert judge(found.total, limit=0.03) == "cannot tell"


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        (1.04, 1.20, "slower"),
        (1.03, 1.20, "cannot tell"),
        (0.90, 1.02, "not slower"),
        (0.90, 1.03, "not slower"),
        (0.90, 1.04, "cannot tell"),
    ],
)
def test_the_limit_is_judged_by_the_intervals_bounds(low, high, outcome):
    total = compare(run([0.01, 0.01]), run([0.01, 0.02], **LATER)).total
    total = replace(total, ratio_interval=Interval(low, high, 0.95))
    assert judge(total, limit=0.03) == outcome


# --- unlike runs ----------------------------------------------------------------------------------

OTHER = {
    "network_sha256": "1" * 64,
    "board": "nano",
    "runtime": "onnxruntime",
    "runtime_version": "2",
    "precision": "int8",
    "batch": 8,
    "threads": 2,
    "power_mode": "5W",
    "timed": "trtexec",
    "machine": "Cortex-A57, 4 cores",
}


@pytest.mark.parametrize("name", [*MUST_MATCH, "machine"])
def test_unlike_runs_are_refused_by_name_unless_that_is_allowed(name):
    a = run([0.01, 0.01], machine="Xeon, 2 cores")
    b = run([0.02, 0.02], **{"machine": "Xeon, 2 cores", **LATER, name: OTHER[name]})
    with pytest.raises(ConfigError, match=f"unlike: {name} is .*--may-differ {name}") as caught:
        compare(a, b)
    assert caught.value.exit_code == 2
    for options in ({"may_differ": [name]}, {"allow_unlike": True}):
        found = compare(a, b, **options)
        assert found.unlike == (name,)
        assert found.total.ratio == 2


def test_allowing_one_field_does_not_allow_another():
    a, b = run([0.01, 0.01]), run([0.02, 0.02], batch=8, threads=2, **LATER)
    with pytest.raises(ConfigError, match="threads"):
        compare(a, b, may_differ=["batch"])


def test_a_field_that_does_not_exist_cannot_be_allowed():
    with pytest.raises(ConfigError, match="colour"):
        compare(run([0.01, 0.01]), run([0.02, 0.02], **LATER), may_differ=["colour"])


def test_engines_of_one_campaign_may_differ_in_network_and_precision_alone():
    a = run([0.010, 0.020], label="baseline")
    b = run([0.005, 0.010], label="joint", network_sha256="1" * 64, precision="int8")
    assert compare(a, b).total.ratio == pytest.approx(0.5)
    with pytest.raises(ConfigError, match="batch"):
        compare(a, Run(source="b", record=replace(b.record, batch=8)))


def test_a_run_is_not_compared_with_itself():
    with pytest.raises(ConfigError, match="the same run"):
        compare(run([0.01, 0.01]), run([0.01, 0.01]))


def test_what_an_older_run_does_not_know_is_shown_and_refuses_nothing():
    a = run([0.01, 0.01])
    b = run([0.01, 0.01], machine="Xeon, 2 cores", agent_hash="f" * 64, **LATER)
    found = {change.name: change for change in compare(a, b).conditions}
    assert (found["machine"].a, found["machine"].b) == (None, "Xeon, 2 cores")
    assert not found["machine"].changed
    assert not found["agent_hash"].changed


def test_conditions_that_changed_are_told_from_those_that_wavered():
    cold = Conditions(cpu_clock_hz=(1e9, 2e9), temp_c=40.0, load_1min=0.1, throttled=False)
    warm = Conditions(cpu_clock_hz=(1e9, 1e9), temp_c=44.0, load_1min=2.0, throttled=True)
    a = run([0.01, 0.01], before=cold, after=cold, agent_hash="a" * 64)
    b = run([0.01, 0.01], before=cold, after=warm, agent_hash="b" * 64, **LATER)
    found = {change.name: change for change in compare(a, b).conditions}
    changed = {name for name, change in found.items() if change.changed}
    # Means of clocks: 1.5 and 1 GHz; 4 degrees are less than 5.
    assert changed == {"agent_hash", "cpu_clock_hz after", "load_1min after", "throttled"}
    assert found["cpu_clock_hz after"].a == 1.5e9
    # A GPU's clock, which neither knows, is not listed.
    assert not any(name.startswith("gpu") for name in found)


def test_settings_and_what_telemetry_saw_are_compared():
    def look(at_s, clock_hz, temp_c):
        return TelemetrySample(at_s=at_s, cpu_clock_hz=clock_hz, temp_c=temp_c)

    def watched(*samples):
        return Telemetry(period_s=1.0, cost_share=0.001, samples=samples)

    a = run(
        [0.01, 0.01],
        settings=BoardSettings(governor="performance", cpus_online=4),
        telemetry=watched(look(0.5, 1e9, 50.0), look(1.5, 2e9, 60.0)),
    )
    b = run(
        [0.01, 0.01],
        settings=BoardSettings(governor="schedutil", fan_pwm=80),
        telemetry=watched(look(0.5, 1e9, 58.0)),
        **LATER,
    )
    found = {change.name: change for change in compare(a, b).conditions}
    assert {name for name, one in found.items() if one.changed} == {
        "governor",
        "cpu_clock_hz during",
    }
    # The mean of 1 and 2 GHz, and the hottest looks: 2 degrees are less than 5.
    assert (found["cpu_clock_hz during"].a, found["cpu_clock_hz during"].b) == (1.5e9, 1e9)
    assert (found["temp_c during"].a, found["temp_c during"].b) == (60.0, 58.0)
    assert (found["fan_pwm"].a, found["fan_pwm"].b) == (None, 80)


# --- logs -----------------------------------------------------------------------------------------


def log_run(folder, samples_ms, name="net.onnx") -> Run:
    (found,) = read_log(write_log(folder / f"{len(samples_ms)}{name}.log", samples_ms, net=name))
    return Run(source=f"{len(samples_ms)}.log", record=found)


def test_a_log_of_six_windows_has_an_interval_and_one_of_five_has_none(tmp_path):
    # The median of six windows is between their extremes in 1 - 2 / 64 of all cases, 96.9 %;
    # of five in 93.8 %.
    windows = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5]
    six = log_run(tmp_path, [mean for mean in windows for _ in range(10)])
    five = log_run(tmp_path, [mean for mean in windows[:5] for _ in range(10)])
    found = compare(five, six)
    assert found.a.interval_s is None
    # The log's median is (1.2 + 1.3) / 2 ms, as is that of its windows.
    assert found.b.interval_s.low == pytest.approx(0.0010)
    assert found.b.interval_s.high == pytest.approx(0.0015)
    assert found.total.ratio_interval is None
    assert any("too few for an interval" in note for note in found.notes)


def test_an_interval_of_nine_windows_leaves_out_one_at_each_end(tmp_path):
    # 2 * (1 + 9) / 512 = 3.9 % lie outside; without two at each end it would be 18 %.
    means = [1.0 + i / 10 for i in range(9)]
    nine = log_run(tmp_path, [mean for mean in means for _ in range(10)])
    other = log_run(tmp_path, [2.0] * 60)
    interval = compare(nine, other).a.interval_s
    assert (interval.low, interval.high) == (pytest.approx(0.0011), pytest.approx(0.0017))


def test_logs_of_networks_with_other_names_are_unlike(tmp_path):
    with pytest.raises(ConfigError, match=r"network_sha256 is file a\.onnx in A"):
        compare(log_run(tmp_path, [1.0] * 60, "a.onnx"), log_run(tmp_path, [1.0] * 70, "b.onnx"))


def test_a_log_and_a_measurement_are_unlike_in_what_they_time(tmp_path):
    log = log_run(tmp_path, [1.0] * 60)
    with pytest.raises(ConfigError, match="timed is trtexec in A and host in B"):
        compare(log, run([0.001, 0.001]))


# --- kernel by kernel -----------------------------------------------------------------------------


def test_kernels_are_matched_by_their_nodes_and_the_rest_is_listed():
    a = profile(
        kernel("/a", 3e-3, name="r1_nchwc"),
        kernel("", 1e-3, name="ReorderOutput", op="ReorderOutput", serves="/b"),
        kernel("/old", 2e-3),
    )
    b = profile(
        kernel("/a", 4e-3, name="a_token_7", op="QLinearConv"),
        kernel("", 2e-3, name="ReorderOutput_9", op="ReorderOutput", serves="/b"),
        kernel("/new", 1e-3),
    )
    found = compare(
        replace(run([0.01, 0.01]), profile=a), replace(run([0.01, 0.01], **LATER), profile=b)
    )
    assert [one.key for one in found.kernels] == ["/a", "ReorderOutput for /b"]
    first = found.kernels[0]
    assert (first.op_a, first.op_b) == ("Conv", "QLinearConv")
    assert first.difference.difference_s == pytest.approx(1e-3)
    assert first.difference.ratio_interval is None
    assert [one.node for one in found.only_a] == ["/old"]
    assert [one.node for one in found.only_b] == ["/new"]
    # 3 + 1 + 2 ms against 4 + 2 + 1; of the ratios 4/3 and 2 the median is 5/3.
    assert found.sum_of_kernels.a_s == pytest.approx(6e-3)
    assert found.sum_of_kernels.b_s == pytest.approx(7e-3)
    assert found.usual_ratio == pytest.approx(5 / 3)


def test_kernels_of_one_key_are_numbered_in_the_order_of_execution():
    twice = profile(kernel("", 1.0, name="Relu"), kernel("", 1.0, name="Relu"))
    assert keys(twice) == ("Relu", "Relu (2)")


def test_a_kernels_interval_is_that_of_stretches_of_runs():
    # Ten stretches of four runs: each has one disturbed run, which its middle half leaves out.
    calm = [0.001, 0.001, 0.001, 0.009] * 10
    slow = [0.002, 0.002, 0.002, 0.009] * 10
    a = replace(run([0.01, 0.01]), profile=profile(kernel("/a", 0.001, samples_s=calm)))
    b = run([0.01, 0.01], **LATER)
    b = replace(b, profile=profile(kernel("/a", 0.002, samples_s=slow)))
    (one,) = compare(a, b).kernels
    assert one.difference.ratio_interval.low == pytest.approx(2)
    assert one.difference.ratio_interval.high == pytest.approx(2)


def in_turn(latencies_s, *, name="/a", campaign="c"):
    """A kernel profiled in passes of four runs, each pass with its own time."""
    passes = [profile(kernel(name, one, samples_s=[one] * 4)) for one in latencies_s]
    return join(passes, campaign=campaign)


def test_kernels_that_were_profiled_in_turn_are_compared_pass_by_pass():
    # The board drifts to twice the time; B takes 10 % more in every pass.
    a = replace(run([0.01, 0.01]), profile=in_turn([0.001, 0.002, 0.002]))
    b = run([0.01, 0.01], **LATER)
    b = replace(b, profile=in_turn([0.0011, 0.0022, 0.0022]))
    (one,) = compare(a, b).kernels
    assert (one.difference.basis, one.difference.rounds) == ("rounds", 3)
    assert one.difference.ratio_interval.low == pytest.approx(1.1)
    assert one.difference.ratio_interval.high == pytest.approx(1.1)
    # The median pass of A, 2 ms, times a tenth.
    assert one.difference.difference_s == pytest.approx(0.0002)


def test_passes_of_another_campaign_are_not_taken_for_turns():
    a = replace(run([0.01, 0.01]), profile=in_turn([0.001, 0.002] * 5))
    b = replace(run([0.01, 0.01], **LATER), profile=in_turn([0.001, 0.002] * 5, campaign="d"))
    assert compare(a, b).kernels[0].difference.basis == "independent"


def test_a_kernel_below_the_profilers_clock_has_no_ratio_of_passes():
    a = replace(run([0.01, 0.01]), profile=in_turn([0.0, 0.001]))
    b = replace(run([0.01, 0.01], **LATER), profile=in_turn([0.001, 0.001]))
    assert compare(a, b).kernels[0].difference.basis == "none"


def test_passes_keep_their_runs_and_must_be_of_one_engine():
    joined = in_turn([0.001, 0.003, 0.002])
    assert joined.rounds == (0,) * 4 + (1,) * 4 + (2,) * 4
    assert joined.kernels[0].latency_s == 0.002
    assert joined.kernels[0].samples_s == (0.001,) * 4 + (0.003,) * 4 + (0.002,) * 4
    with pytest.raises(StableBoardError, match="other kernels"):
        join([profile(kernel("/a", 0.1)), profile(kernel("/b", 0.1))], campaign="c")


def test_without_enough_runs_a_kernel_has_no_interval():
    few = profile(kernel("/a", 0.001, samples_s=[0.001] * 19))
    a, b = run([0.01, 0.01]), run([0.01, 0.01], **LATER)
    (one,) = compare(replace(a, profile=few), replace(b, profile=few)).kernels
    assert one.difference.basis == "none"


def test_where_one_run_was_not_profiled_that_is_said():
    a = replace(run([0.01, 0.01]), profile=profile(kernel("/a", 0.001)))
    found = compare(a, run([0.01, 0.01], **LATER))
    assert (found.kernels, found.only_a, found.sum_of_kernels) == ((), (), None)
    assert any("B was not profiled" in note for note in found.notes)


def test_a_kernel_that_takes_no_time_in_one_run_is_compared_all_the_same():
    a = replace(run([0.01, 0.01]), profile=profile(kernel("/a", 0.0), kernel("/b", 0.0)))
    b = run([0.01, 0.01], **LATER)
    b = replace(b, profile=profile(kernel("/a", 0.001), kernel("/b", 0.0)))
    first, second = compare(a, b).kernels
    assert first.difference.difference_s == 0.001
    assert (first.difference.ratio, second.difference.ratio) == (None, None)
    assert second.difference.difference_s == 0


def test_a_run_of_the_fake_engine_is_called_that():
    assert isinstance(run([0.01, 0.01]).record, Measurement)
    found = compare(run([0.01, 0.01]), run([0.02, 0.02], **LATER))
    assert any("fake engine" in note for note in found.notes)
