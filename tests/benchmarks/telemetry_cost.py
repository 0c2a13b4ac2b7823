"""What looking at a board costs the measurement that it is looked at during.

    python -m tests.benchmarks.telemetry_cost [--board NAME] [--pairs 12] [--period 1.0]

The same network is measured with and without looks in turn, so that the board's drift meets both
alike; the order within a pair changes from one pair to the next. Prints the ratio of the medians
(with over without) with its interval, and the processor time that looking took.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import stats
from harness.boards import inventory
from harness.boards.session import EngineRequest, MeasurePlan, Session
from tests.boards.support import float_network

PAIRS = 12
SECONDS = 4.0
PERIOD_S = 1.0
RESAMPLES = 2000


def measure(
    *,
    board: str = "local",
    network: Path | None = None,
    pairs: int = PAIRS,
    seconds: float = SECONDS,
    period_s: float = PERIOD_S,
) -> dict[str, Any]:
    """The ratio of latencies with looks to those without, and what a look costs.

    ``ratio`` is the median over the pairs, ``ratio_interval`` its 95 % bootstrap interval;
    ``cost_share`` processor seconds of looking a second, ``look_s`` those of one look.
    """
    # At most 200 calls a round stay far below the 2,000 that end a round early.
    plan = MeasurePlan(warmup_s=0.2, rounds=20, block_s=seconds / 20, block_min=1, drop=2)
    spec = inventory.find(board)
    latencies_s: dict[bool, list[float]] = {True: [], False: []}
    costs, looks, wall_s = [], 0, 0.0
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        path = network or float_network(Path(folder, "tiny.onnx"))
        engine = EngineRequest(label="e", path=path, precision="fp32")
        sessions = {
            looking: stack.enter_context(
                Session(replace(spec, telemetry_s=period_s if looking else 0.0))
            )
            for looking in (True, False)
        }
        for pair in range(pairs):
            for looking in (True, False) if pair % 2 else (False, True):
                (found,) = sessions[looking].measure([engine], plan=plan, campaign="cost")
                latencies_s[looking].append(stats.median(found.samples_s))
                if found.telemetry is not None and found.telemetry.samples:
                    costs.append(found.telemetry.cost_share)
                    looks += len(found.telemetry.samples)
                    wall_s += found.telemetry.samples[-1].at_s
    ratios = [a / b for a, b in zip(latencies_s[True], latencies_s[False], strict=True)]
    cost_share = stats.median(costs)
    return {
        "board": board,
        "pairs": pairs,
        "period_s": period_s,
        "latency_s": stats.median(latencies_s[False]),
        "ratio": stats.median(ratios),
        "ratio_interval": _interval(ratios),
        "ratios": ratios,
        "looks": looks,
        "cost_share": cost_share,
        "look_s": cost_share * wall_s / looks,
    }


def _interval(values: list[float]) -> tuple[float, float]:
    """95 % of the medians of resamples."""
    draw = random.Random(0)
    medians = sorted(
        stats.median(tuple(draw.choices(values, k=len(values)))) for _ in range(RESAMPLES)
    )
    return medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES)]


def main() -> None:
    """Print what ``measure`` finds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--board", default="local")
    parser.add_argument("--network", type=Path)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--period", type=float, default=PERIOD_S)
    options = parser.parse_args()
    found = measure(
        board=options.board,
        network=options.network,
        pairs=options.pairs,
        seconds=options.seconds,
        period_s=options.period,
    )
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
