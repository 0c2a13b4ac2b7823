"""Whether strategies keep what they promise.

    python -m tests.benchmarks.strategies --published --data ../shared/measured [--json]

``--published``: given the latency model of the held-out benchmark, the planner chooses a width or a
network for a random latency requirement; the published measurement says whether it keeps it, and
whether a better one would have. Targets: 90 % and 75 % of the draws.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tests.benchmarks import choices
from tests.benchmarks.choices import Draw, Rate

OURS = next(iter(choices.RULES))
TARGETS = {"met": 0.90, "right": 0.75}
# What has measured times and no network from which they could be predicted.
LEFT_OUT = "trtexec_runs.csv is left out: its networks are not published with it as graphs"


def key(source: str, rule: str = OURS) -> str:
    """What draws are filed under."""
    return source if rule == OURS else f"{source}, {rule}"


def published(folder: Path, out: Path, *, draws: int, seed: int) -> dict[str, list[Draw]]:
    """The planner's draws by source; ``predictions.csv`` and ``draws.csv`` are written to ``out``.

    Every prediction is written before the first choice is made.
    """
    out.mkdir(parents=True, exist_ok=True)
    sets = {}
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("predict what was held out", total=len(choices.SOURCES))
        for source in choices.SOURCES:
            sets[source.key] = choices.predicted(folder, source, seed)
            progress.advance(bar)
    rows = [
        (source, name, *known)
        for source, groups in sets.items()
        for name, several in groups.items()
        for known in several
    ]
    _write(out / "predictions.csv", ("source", "set", *choices.Known._fields), rows)
    found = {
        key(source.key, name): choices.drawn(
            source, sets[source.key], draws=draws, seed=seed, rule=rule
        )
        for source in choices.SOURCES
        for name, rule in choices.RULES.items()
    }
    rows = [(name, *draw) for name, several in found.items() for draw in several]
    _write(out / "draws.csv", ("rule", *Draw._fields), rows)
    return found


def _write(path: Path, heading: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(heading)
        writer.writerows(rows)


def scored(draws: Sequence[Draw]) -> dict[str, Rate]:
    """How often the choice kept the limit, and was the best that does."""
    return {
        "met": choices.rate([draw.met for draw in draws]),
        "right": choices.rate([draw.right for draw in draws]),
    }


def table(found: dict[str, list[Draw]]) -> Table:
    """A source a line, with what simpler rules reach on the same draws."""
    result = Table(title="Choices for random latency requirements, judged by published times (%)")
    for heading in ("source", "what", "worst set"):
        result.add_column(heading)
    for heading in ("kept the limit", "expected", "best that does", *list(choices.RULES)[1:]):
        result.add_column(heading, justify="right")
    for source in choices.SOURCES:
        draws = found[source.key]
        rates = scored(draws)
        rivals = [scored(found[key(source.key, name)]) for name in list(choices.RULES)[1:]]
        name, share = choices.worst(draws)
        result.add_row(
            source.key,
            source.what,
            f"{name}: {100 * share:.0f} best",
            _text(rates["met"]),
            f"{100 * sum(d.chance for d in draws) / len(draws):.1f}",
            _text(rates["right"]),
            *(", ".join(f"{100 * r.share:.0f}" for r in rates.values()) for rates in rivals),
        )
    result.caption = f"targets: 90 % kept, 75 % best; {LEFT_OUT}"
    return result


def _text(rate: Rate) -> str:
    return f"{100 * rate.share:.1f} ({100 * rate.low:.0f} to {100 * rate.high:.0f})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; 0, 1 where a target is missed, 2 without the data."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--published", action="store_true", help="choices among published networks")
    parser.add_argument("--data", type=Path, default=Path("../shared/measured"))
    parser.add_argument("--out", type=Path, default=Path("runs/strategies"))
    parser.add_argument("--draws", type=int, default=choices.DRAWS)
    parser.add_argument("--seed", type=int, default=choices.SEED)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    if not options.published:
        parser.error("say what to run: --published")
    if not (options.data / "jetson_nano").is_dir():
        print(f"{options.data} has no folder jetson_nano: give --data", file=sys.stderr)
        return 2
    started = time.perf_counter()
    found = published(options.data, options.out, draws=options.draws, seed=options.seed)
    scores = {name: scored(draws) for name, draws in found.items()}
    if options.json:
        print(json.dumps({k: {n: r._asdict() for n, r in s.items()} for k, s in scores.items()}))
    else:
        Console(width=170).print(table(found))
    print(f"{time.perf_counter() - started:.0f} s; draws in {options.out}", file=sys.stderr)
    ours = [scores[source.key] for source in choices.SOURCES]
    kept = all(s[name].share >= least for s in ours for name, least in TARGETS.items())
    return 0 if kept else 1


if __name__ == "__main__":
    raise SystemExit(main())
