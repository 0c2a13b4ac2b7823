import dataclasses

from harness.records import BoardSettings, Telemetry, TelemetrySample
from harness.report import plain, running
from tests.test_stats import measurement

SETTINGS = BoardSettings(
    power_mode="MAXN",
    clocks_locked=True,
    governor="schedutil",
    cpus_online=4,
    cpu_max_hz=1_479_000_000,
    gpu_max_hz=921_600_000,
    fan_pwm=80,
)
TELEMETRY = Telemetry(
    period_s=1.0,
    cost_share=0.00523,
    samples=(
        TelemetrySample(at_s=0.5, gpu_clock_hz=921.6e6, temp_c=41.2, throttled=False),
        TelemetrySample(at_s=1.5, gpu_clock_hz=614.4e6, temp_c=44.8, power_w=4.125, throttled=True),
    ),
)


def test_what_is_known_of_a_run_is_told_and_nothing_else():
    taken = dataclasses.replace(
        measurement([0.001], [0]), settings=SETTINGS, telemetry=TELEMETRY, warnings=("it is hot",)
    )
    assert running.running_lines(taken) == (
        "Settings: power mode MAXN, clocks locked, governor schedutil, 4 CPUs up to 1479 MHz, "
        "GPU up to 921.6 MHz, fan at pwm 80",
        "Telemetry: 2 looks, one every 1 s, which cost 0.52% of one CPU, GPU 614.4 MHz to "
        "921.6 MHz, 41 °C to 45 °C, 4.1 W, throttled in 1 of 2 looks",
        "Warning: it is hot",
    )
    assert running.running_lines(measurement([0.001], [0])) == ()


def test_a_board_that_tells_nothing_and_a_short_run_give_short_lines():
    calm = TelemetrySample(at_s=0.5, throttled=False)
    one = Telemetry(period_s=0.5, cost_share=0.0, samples=(calm,))
    assert running.telemetry_text(one) == (
        "1 look, one every 0.5 s, which cost 0.00% of one CPU, never throttled"
    )
    none = Telemetry(period_s=1.0, cost_share=0.0, samples=())
    assert "over before the first look" in running.telemetry_text(none)
    silent = dataclasses.replace(measurement([0.001], [0]), settings=BoardSettings())
    assert running.running_lines(silent) == ()


def test_the_json_of_a_measurement_has_settings_telemetry_and_warnings():
    taken = dataclasses.replace(
        measurement([0.001], [0]), settings=SETTINGS, telemetry=TELEMETRY, warnings=("it is hot",)
    )
    found = plain.measurement_json(taken)
    assert found["settings"]["power_mode"] == "MAXN"
    assert found["telemetry"]["cost_share"] == 0.00523
    assert found["telemetry"]["samples"][1]["power_w"] == 4.125
    assert found["warnings"] == ["it is hot"]
    assert plain.measurement_json(measurement([0.001], [0]))["telemetry"] is None
