from __future__ import annotations

import json
from pathlib import Path

import pytest

from device_agent import timing
from device_agent.engine_fake import SimulatedClock


class Scripted:
    """Engines whose calls take a given time and are noted in order."""

    def __init__(self) -> None:
        self.clock = SimulatedClock()
        self.order: list[str] = []

    def engine(self, name: str, latency_s: float):
        def run() -> None:
            self.order.append(name)
            self.clock.now_s += latency_s

        return run


def _plan(**changes: float) -> timing.Plan:
    values = {"warmup_s": 0.0, "rounds": 2, "block_s": 0.0, "block_min": 2, "drop": 1, **changes}
    return timing.Plan(**values)


def test_blocks_alternate_and_their_first_calls_are_dropped() -> None:
    script = Scripted()
    runs = [script.engine("a", 1.0), script.engine("b", 2.0)]
    looks: list[int] = []
    rounds: list[int] = []
    a, b = timing.interleave(
        runs, _plan(), script.clock, lambda: looks.append(len(script.order)), rounds.append
    )
    # Two warm-up calls each, then one dropped and two timed calls of a, the same of b; and back.
    assert "".join(script.order) == "aabb" + "aaabbb" + "bbbaaa"
    assert a == timing.Timed([1.0] * 4, [0, 0, 1, 1], [1.0, 1.0])
    assert b == timing.Timed([2.0] * 4, [0, 0, 1, 1], [2.0, 2.0])
    assert looks == [4]
    assert rounds == [1, 2]


def test_each_call_that_counts_is_asked_about_outside_of_its_time() -> None:
    script = Scripted()
    runs = [script.engine("a", 1.0), script.engine("b", 2.0)]

    def ask() -> None:
        script.order.append("?")
        script.clock.now_s += 100.0

    a, b = timing.interleave(
        runs, _plan(rounds=1), script.clock, lambda: None, lambda _: None, [ask, lambda: None]
    )
    # Two warm-up calls each; then a dropped call and two that count, of which a's are asked about.
    assert "".join(script.order) == "aabb" + "aa?a?" + "bbb"
    assert (a.samples_s, b.samples_s) == ([1.0, 1.0], [2.0, 2.0])


def test_a_block_lasts_its_time_where_calls_are_short() -> None:
    script = Scripted()
    (timed,) = timing.interleave(
        [script.engine("a", 0.25)],
        _plan(block_s=2.0, rounds=1),
        script.clock,
        lambda: None,
        lambda _: None,
    )
    assert len(timed.samples_s) == 8  # 8 x 0.25 s


def test_a_block_of_a_very_fast_network_is_bounded() -> None:
    script = Scripted()
    plan = _plan(block_s=1e9, rounds=1)
    (timed,) = timing.interleave(
        [script.engine("a", 1e-6)], plan, script.clock, lambda: None, lambda _: None
    )
    assert len(timed.samples_s) == timing.MAX_BLOCK_CALLS


def test_warming_up_goes_on_until_times_settle() -> None:
    clock = SimulatedClock()
    # Halves until the tenth call, then stays: the first two windows of five that agree are calls
    # 9 to 13 and 14 to 18 (medians of the 11th and the 16th).
    latencies = [1.0 / 2 ** min(n, 10) for n in range(100)]
    calls = iter(latencies)

    def run() -> None:
        clock.now_s += next(calls)

    warmup = timing.warm_up(run, 1.0, clock)
    assert warmup == pytest.approx(latencies[:18])


def test_warming_up_that_never_settles_is_bounded() -> None:
    clock = SimulatedClock()
    calls = iter(range(1, 1000))

    def run() -> None:
        clock.now_s += next(calls)

    # 1 + 2 + ... + n >= 4 x 10: n = 9.
    assert timing.warm_up(run, 10.0, clock) == [1, 2, 3, 4, 5, 6, 7, 8, 9]


def _soak(script: Scripted, seconds: float, *latencies_s: float):
    runs = [
        script.engine(name, latency_s) for name, latency_s in zip("abc", latencies_s, strict=False)
    ]
    told: list[float] = []
    soaked = timing.soak(runs, seconds, script.clock, lambda: {"now": script.clock()}, told.append)
    return [one.wire() for one in soaked], told


def test_engines_soak_in_turn_in_windows_of_a_second() -> None:
    script = Scripted()
    (a, b), told = _soak(script, 4.0, 0.25, 0.5)
    # A window of a lasts 4 x 0.25 s, one of b 2 x 0.5 s; after two of each 4 s have passed.
    assert "".join(script.order) == "aaaabb" * 2
    assert told == [1.0, 2.0, 3.0, 4.0]
    assert a["samples_s"] == [0.25] * 8
    assert [w["at_s"] for w in b["windows"]] == [2.0, 4.0]
    assert b["windows"][0] == {
        "at_s": 2.0,
        "n": 2,
        "median_s": 0.5,
        "p10_s": 0.5,
        "p90_s": 0.5,
        "conditions": {"now": 2.0},
    }


def test_a_long_soak_keeps_every_nth_call_and_a_bounded_number_of_windows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(timing, "MAX_SOAK_SAMPLES", 100)
    # 3,000 s of 0.5 s in at most 300 windows: 6,000 calls, of which every 64th is call 0, 64, ...
    (found,), _ = _soak(Scripted(), 3000.0, 0.5)
    assert len(found["windows"]) == 300
    assert sum(w["n"] for w in found["windows"]) == 6000
    assert found["every"] == 64
    assert len(found["samples_s"]) == 94  # 6000 / 64, rounded up


def test_what_is_kept_of_a_soak_is_every_nth_call_from_the_first_on() -> None:
    kept = timing.Soaked(4)
    for start in (0, 10):
        kept.add([float(i) for i in range(start, start + 10)], 1.0, {})
    # 20 calls; with every 4th kept there are five, one too many; so every 8th: 0, 8 and 16.
    assert kept.wire()["every"] == 8
    assert kept.wire()["samples_s"] == [0.0, 8.0, 16.0]


def test_a_soak_of_one_long_call_has_one_window() -> None:
    (found,), _ = _soak(Scripted(), 2.0, 30.0)
    assert [w["n"] for w in found["windows"]] == [1]


def test_the_longest_soak_fits_into_a_frame_many_times_over() -> None:
    limit = json.loads((Path(timing.__file__).parent / "wire_v1.json").read_text())
    kept = timing.Soaked(timing.MAX_SOAK_SAMPLES)
    for second in range(timing.SOAK_WINDOWS):
        kept.add([1 / 3] * 500, float(second), {"cpu_clock_hz": [1.479e9] * 4})
    assert kept.wire()["every"] == 2  # 150,000 calls, of which 100,000 may be kept
    assert 4 * len(json.dumps(kept.wire())) < limit["x-max-frame-bytes"]
