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
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from harness import stats
from harness.boards import inventory
from harness.boards.session import EngineRequest, MeasurePlan, Session

PAIRS = 12
SECONDS = 4.0
PERIOD_S = 1.0


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
    # Calls of milliseconds: 2,000 of them would end a round early.
    plan = MeasurePlan(warmup_s=0.2, rounds=20, block_s=seconds / 20, block_min=1, drop=2)
    spec = inventory.find(board)
    latencies_s: dict[bool, list[float]] = {True: [], False: []}
    costs, looks, wall_s = [], 0, 0.0
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        path = network or _convolutions(Path(folder, "convolutions.onnx"))
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
    interval = stats.ratio_interval(ratios)
    cost_share = stats.median(costs)
    return {
        "board": board,
        "pairs": pairs,
        "period_s": period_s,
        "latency_s": stats.median(latencies_s[False]),
        "ratio": stats.median(ratios),
        "ratio_interval": (interval.low, interval.high),
        "ratios": ratios,
        "looks": looks,
        "cost_share": cost_share,
        "look_s": cost_share * wall_s / looks,
    }


def _convolutions(path: Path) -> Path:
    """A file with two 3x3 convolutions of 32 channels at 56x56: 58 million MACs, milliseconds."""
    random = np.random.default_rng(0)
    shape = [1, 32, 56, 56]
    weights = random.normal(scale=0.05, size=(2, 32, 32, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w0"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Conv", ["c", "w1"], ["y"], pads=[1, 1, 1, 1]),
        ],
        "convolutions",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weights[i], f"w{i}") for i in range(2)],
    )
    # What onnxruntime 1.10 reads, the last for Python 3.6.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(path))
    return path


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
