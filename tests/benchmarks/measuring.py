"""How well this computer measures: against a bare loop, and whether intervals keep their word.

    python -m tests.benchmarks.measuring [--json]

Both use the real agent through ``Session.measure`` on the board ``local``; about seven minutes.

**Against a bare loop.** The agent's worker and a bare onnxruntime loop in this process take turns
of a twentieth of a second on the same core's time: while the loop runs, the worker is stopped
(SIGSTOP), and goes on afterwards. The call in which it was stopped is longer than a turn, is
recognised by that, and parts the worker's samples into its turns. It is dropped, as the loop drops
the call in which its turn ends, and so are on both sides the first calls of a turn, which find the
other's data in the caches. Each turn of the worker is held against the loop's just before and
after. What is reported is the median of these ratios, less
one: a computer that changes its pace by the second changes it for both.

**Intervals.** One engine is loaded a hundred times, and these hundred repetitions are measured in
one interleaved run: in each of many rounds every repetition has one timed call, after one that is
dropped. The true value is the median of all their samples: the median of the network over the span
of the run. Each repetition states its median with the 95 % interval of
``stats.interval_of_median``, which speaks of just that, and the true value lies inside or not. This
is what an interval can promise on a computer whose pace wanders by a fifth within seconds: that
another measurement *over the same span* agrees. It does not promise that one a minute later does,
and so the same count is made of a hundred short measurements one after the other, of which most
miss the median of the whole row, and of the wider ``stats.interval_over_time``, which the verdict
names and absolute budgets are judged by. That row is one long measurement cut into a hundred.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from harness import stats
from harness.boards.session import EngineRequest, MeasurePlan, Session
from harness.records import BoardSpec, Interval, Measurement
from latency_models import synthetic

TURN_S = 0.05
TURNS = 400
# Calls of a turn that run with the caches that the other side left.
DROPPED = 3
REPETITIONS = 100
ROUNDS = 900
# Each of the measurements one after the other is as long as boardfit profile's default, or so.
CONSECUTIVE_ROUNDS, CONSECUTIVE_BLOCK_S = 30, 0.02
TARGETS = {
    "median_vs_bare_loop": ("at most", 2.0),
    "interval_honest_of_100": ("at least", 90.0),
    "interval_half_width": ("at most", 2.0),
}


# --- networks -----------------------------------------------------------------------------------


def convolutions(path: Path, *, channels: int, size: int, depth: int, separable: bool) -> Path:
    """A chain of convolutions with ReLU on ``size`` x ``size`` images; random weights."""
    generator = np.random.default_rng(0)
    nodes, arrays, name, inputs = [], [], "x", 3
    for i in range(depth):
        groups, outputs = (inputs, inputs) if separable and i % 2 else (1, channels)
        scale = (2 / (9 * inputs / groups)) ** 0.5
        weights = generator.normal(scale=scale, size=(outputs, inputs // groups, 3, 3))
        arrays.append(numpy_helper.from_array(weights.astype(np.float32), f"w{i}"))
        nodes += [
            helper.make_node("Conv", [name, f"w{i}"], [f"c{i}"], pads=[1] * 4, group=groups),
            helper.make_node("Relu", [f"c{i}"], [f"r{i}"]),
        ]
        name, inputs = f"r{i}", outputs
    nodes.append(helper.make_node("GlobalAveragePool", [name], ["y"]))
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, inputs, 1, 1])],
        arrays,
    )
    opset = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(path))
    return path


def networks(folder: Path) -> dict[str, Path]:
    """A fifth of a millisecond to ten: small, separable, int8, and wide."""
    found = {
        "small": convolutions(
            folder / "small.onnx", channels=16, size=24, depth=6, separable=False
        ),
        "separable": convolutions(
            folder / "separable.onnx", channels=48, size=32, depth=9, separable=True
        ),
        "wide": convolutions(folder / "wide.onnx", channels=64, size=32, depth=6, separable=False),
    }
    found["wide int8"] = folder / "wide.int8.onnx"
    synthetic.quantize(found["wide"], found["wide int8"])
    return found


def board(folder: Path) -> BoardSpec:
    return BoardSpec(name="local", python=sys.executable, cache_dir=str(folder / "cache"))


# --- against a bare loop ------------------------------------------------------------------------


class Turns:
    """The bare loop, which stops the agent's worker for each of its turns."""

    def __init__(self, network: Path, cache: Path) -> None:
        self._cache = cache
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            str(network), options, providers=["CPUExecutionProvider"]
        )
        (given,) = session.get_inputs()
        feed = {given.name: np.random.default_rng(1).normal(size=given.shape).astype(np.float32)}
        self._run: Callable[[], Any] = lambda: session.run(None, feed)
        self._thread = threading.Thread(target=self._alternate)
        self.turns: list[list[float]] = []

    def on_event(self, event: dict[str, object]) -> None:
        """Begin once the worker times its first round."""
        if event.get("what") == "measuring" and not self.turns and not self._thread.is_alive():
            self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def _worker(self) -> int:
        newest = max(self._cache.glob("jobs/*/worker.json"), key=lambda p: p.stat().st_mtime)
        return int(json.loads(newest.read_text())["process_group"])

    def _alternate(self) -> None:
        worker = self._worker()
        for _ in range(TURNS):
            os.killpg(worker, signal.SIGSTOP)
            try:
                self.turns.append(self._turn())
            finally:
                os.killpg(worker, signal.SIGCONT)
            time.sleep(TURN_S)

    def _turn(self) -> list[float]:
        calls_s = []
        end_s = time.perf_counter() + TURN_S
        while True:
            start_s = time.perf_counter()
            self._run()
            now_s = time.perf_counter()
            # The worker's last call is cut off by the stop: long ones are more likely to be.
            if now_s >= end_s:
                return calls_s[DROPPED:]
            calls_s.append(now_s - start_s)


def workers_turns(measurement: Measurement) -> list[list[float]]:
    """The worker's calls between two stops, the first of each dropped; before the first, after
    the last stop it had the board to itself, which is left out."""
    turns: list[list[float]] = [[]]
    for call_s in measurement.samples_s:
        if call_s >= TURN_S:
            turns.append([])
        else:
            turns[-1].append(call_s)
    return [turn[DROPPED:] for turn in turns[1:-1]]


def against_bare_loop(name: str, network: Path, folder: Path) -> dict[str, Any]:
    """One network's row: both medians, and the median ratio of turns with its interval."""
    loop = Turns(network, folder / "cache")
    # The rounds last until the turns are over, and a little longer; blocks go on through stops.
    seconds = 2.3 * TURNS * TURN_S
    plan = MeasurePlan(warmup_s=0.3, rounds=int(seconds / 0.5), block_s=0.5, block_min=1, drop=0)
    with Session(board(folder), on_event=loop.on_event) as session:
        request = EngineRequest(label=name, path=network, precision="file")
        (taken,) = session.measure([request], plan=plan, campaign=f"bare loop {name}")
    loop.join()
    agents = workers_turns(taken)
    if abs(len(agents) - (len(loop.turns) - 1)) > len(loop.turns) // 10:
        raise RuntimeError(
            f"{name}: {len(loop.turns)} stops, but {len(agents)} turns of the worker are told "
            "apart; is a call as long as a turn?"
        )
    ratios = [
        statistics.median(turn)
        / statistics.mean([statistics.median(before), statistics.median(after)])
        for turn, before, after in zip(agents, loop.turns, loop.turns[1:], strict=False)
        if turn and before and after
    ]
    interval = stats.ratio_interval(ratios)
    return {
        "network": name,
        "agent_s": statistics.median([s for turn in agents for s in turn]),
        "bare_s": statistics.median([s for turn in loop.turns for s in turn]),
        "turns": len(ratios),
        "deviation": 100 * (statistics.median(ratios) - 1),
        "deviation_low": 100 * (interval.low - 1),
        "deviation_high": 100 * (interval.high - 1),
    }


def bare_loop() -> dict[str, Any]:
    """The agent's medians against a bare loop's: the worst deviation in %, and a row a network."""
    with tempfile.TemporaryDirectory(prefix="boardfit-benchmark-") as scratch:
        folder = Path(scratch)
        rows = [against_bare_loop(name, path, folder) for name, path in networks(folder).items()]
    return {"median_vs_bare_loop": max(abs(row["deviation"]) for row in rows), "rows": rows}


# --- intervals ----------------------------------------------------------------------------------


def _honesty(
    repetitions: list[Measurement], truth_s: float, interval: Callable[[Measurement], Interval]
) -> tuple[int, float]:
    """How many intervals hold the truth, and the median of half their widths in %."""
    found = [interval(one) for one in repetitions]
    held = sum(i.low <= truth_s <= i.high for i in found)
    return held, 100 * statistics.median((i.high - i.low) / 2 / truth_s for i in found)


def _interleaved(session: Session, network: Path) -> tuple[list[Measurement], float]:
    """A hundred repetitions in one interleaved run, and their grand median."""
    plan = MeasurePlan(warmup_s=0.05, rounds=ROUNDS, block_s=0.0, block_min=1, drop=1)
    requests = [
        EngineRequest(label=f"repetition {i}", path=network, precision="file")
        for i in range(REPETITIONS)
    ]
    taken = list(session.measure(requests, plan=plan, campaign="repetitions"))
    return taken, stats.median([s for one in taken for s in one.samples_s])


def _consecutive(session: Session, network: Path) -> tuple[list[Measurement], float]:
    """One long measurement cut into a hundred short ones, and its median."""
    plan = MeasurePlan(
        warmup_s=0.5,
        rounds=REPETITIONS * CONSECUTIVE_ROUNDS,
        block_s=CONSECUTIVE_BLOCK_S,
        block_min=1,
        drop=0,
    )
    request = EngineRequest(label="row", path=network, precision="file")
    (row,) = session.measure([request], plan=plan, campaign="row")
    samples, rounds = np.array(row.samples_s), np.array(row.rounds)
    taken = []
    for i in range(REPETITIONS):
        ours = (rounds // CONSECUTIVE_ROUNDS) == i
        part = {"samples_s": tuple(samples[ours]), "rounds": tuple(map(int, rounds[ours]))}
        taken.append(replace(row, **part))
    return taken, stats.median(row.samples_s)


def interval_honesty() -> dict[str, Any]:
    """How many of 100 intervals hold the truth, and the median of half their widths in %."""
    with tempfile.TemporaryDirectory(prefix="boardfit-benchmark-") as scratch:
        folder = Path(scratch)
        network = networks(folder)["small"]
        with Session(board(folder)) as session:
            start_s = time.monotonic()
            together, truth_s = _interleaved(session, network)
            span_s = time.monotonic() - start_s
            in_a_row, row_truth_s = _consecutive(session, network)
    held, half = _honesty(together, truth_s, stats.interval_of_median)
    held_over, half_over = _honesty(together, truth_s, stats.interval_over_time)
    row_held, row_half = _honesty(in_a_row, row_truth_s, stats.interval_of_median)
    row_over, row_half_over = _honesty(in_a_row, row_truth_s, stats.interval_over_time)
    medians = [stats.median(one.samples_s) / truth_s for one in together]
    return {
        "interval_honest_of_100": held,
        "interval_half_width": half,
        "interleaved": {
            "median_s": truth_s,
            "span_s": span_s,
            "rounds": ROUNDS,
            "spread_of_medians": 100 * statistics.pstdev(medians),
            "spread_of_calls": 100 * stats.coefficient_of_variation(together[0].samples_s),
            "over_time_honest": held_over,
            "over_time_half_width": half_over,
        },
        "consecutive": {
            "median_s": row_truth_s,
            "honest": row_held,
            "half_width": row_half,
            "over_time_honest": row_over,
            "over_time_half_width": row_half_over,
        },
    }


# --- the command --------------------------------------------------------------------------------


def show(found: dict[str, Any]) -> str:
    lines = [f"{'network':10s} {'agent':>10s} {'bare loop':>10s} {'deviation':>10s}  95 % interval"]
    lines += [
        f"{row['network']:10s} {row['agent_s'] * 1e3:8.3f}ms {row['bare_s'] * 1e3:8.3f}ms "
        f"{row['deviation']:+9.2f}%  {row['deviation_low']:+.2f} to {row['deviation_high']:+.2f} % "
        f"({row['turns']} turns)"
        for row in found["rows"]
    ]
    for name in ("interleaved", "consecutive"):
        lines.append(f"{name}: " + ", ".join(f"{k} {v:.4g}" for k, v in found[name].items()))
    for name, (how, limit) in TARGETS.items():
        met = found[name] <= limit if how == "at most" else found[name] >= limit
        verdict = "met" if met else "not met"
        lines.append(f"{name} {found[name]:.4g} (target {how} {limit:g}: {verdict})")
    lines.append(f"load {found['load_before']:.2f} before, {found['load_after']:.2f} after")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    found = {**bare_loop(), **interval_honesty(), "load_before": load}
    found["load_after"] = os.getloadavg()[0]
    print(json.dumps(found) if arguments.json else show(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
