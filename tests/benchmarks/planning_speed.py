"""How long a plan takes once a network is scored: ``python -m tests.benchmarks.planning_speed``.

Targets for EfficientNet-Lite0 on two cores: 30 s with predicted losses, 5 s without. The latency
model is a datasheet's; losses are predicted only with ``--losses``, where scores and anchors are
kept in ``--cache`` and not counted from the second run on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from harness import networks
from harness.compression.groups import find_groups
from harness.compression.quantize import form_of
from harness.compression.shapes import parameter_shapes
from harness.planning.generator import plan
from harness.planning.preparing import prepare
from harness.records import Requirement, Requirements
from harness.sensitivity.anchors import Images
from tests.benchmarks.compression_networks import NETWORKS, subject
from tests.compression.tiny import facts
from tests.strategies.test_tables import CPU, model_of

# Images to score on and to try anchors on: what EfficientNet-Lite0 is scored on in minutes.
SCORED, JUDGED = 64, 200
# The first can be met, the second cannot: then the nearest limits are worked out as well.
LATENCIES = (0.5, 0.05)


def timed(name: str, images: Path, *, losses: bool, cache: Path) -> dict[str, object]:
    """Seconds of making ready and of planning, and how many strategies there were."""
    found = subject(name, images)
    network, example = found.network, found.calibration[:1]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        networks.export_onnx(network, example, path)
        began = time.perf_counter()
        groups = find_groups(network, example)
        ready = prepare(
            network,
            path,
            groups,
            parameter_shapes(network, example, groups),
            model_of(CPU),
            source="prior",
            form=form_of(facts()),
            precisions=("fp32", "int8"),
            step=8,
            fine_step=8,
            images=Images(
                scored=found.calibration[:SCORED],
                judged=found.test[:JUDGED],
                targets=found.test_labels[:JUDGED],
            )
            if losses
            else None,
            cache=cache,
        )
        prepared_s = time.perf_counter() - began
        row: dict[str, object] = {"network": name, "losses": losses, "prepared_s": prepared_s}
        for share in LATENCIES:
            limits = [
                Requirement(quantity="latency", limit=share, relative=True, text=f"{share:.0%}"),
                Requirement(quantity="size", limit=0.4, relative=True, text="40%"),
            ]
            if losses:
                limits.append(Requirement(quantity="accuracy_drop", limit=1.0, text="1 point"))
            planned = plan(
                Requirements(limits=tuple(limits)), [ready], network=name, board="datasheet"
            )
            row[f"plan_s at {share:.0%}"] = planned.wall_s
            row[f"strategies at {share:.0%}"] = len(planned.strategies)
        planned = plan(Requirements(), [ready], network=name, board="datasheet")
        row["plan_s without limits"] = planned.wall_s
        row["strategies without limits"] = len(planned.strategies)
    return row


def main() -> None:
    """Print a line of JSON for each network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=["efl0"], help=", ".join(NETWORKS))
    parser.add_argument("--images", type=Path, default=Path("../shared/images"))
    parser.add_argument("--losses", action="store_true", help="predict losses as well")
    parser.add_argument("--cache", type=Path, default=Path("runs/planning-speed"))
    given = parser.parse_args()
    for name in given.networks:
        print(json.dumps(timed(name, given.images, losses=given.losses, cache=given.cache)))


if __name__ == "__main__":
    main()
