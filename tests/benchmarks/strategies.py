"""Whether strategies keep what they promise.

    python -m tests.benchmarks.strategies [--only demo resnet56 efl0] [--images ../shared/images]
    python -m tests.benchmarks.strategies --published --data ../shared/measured [--json]

Without ``--published`` every strategy that is planned for three networks is built and measured on
this computer (``strategies_built``); ``--most 3`` does so with the first three alone.

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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tests.benchmarks import choices, compression_networks, strategies_built
from tests.benchmarks.choices import Draw, Rate
from tests.benchmarks.strategies_built import Score

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


def built(options: argparse.Namespace) -> int:
    """Predictions against variants that are built and measured here; a line a network."""
    cache: Path = options.cache
    scores: dict[str, Score] = {}
    absent: list[str] = []
    for name in options.only:
        try:
            asked = strategies_built.request(
                name,
                options.images,
                cache,
                epochs=options.epochs,
                student_epochs=options.student_epochs,
            )
            plan, rows, notes = strategies_built.run(asked, most=options.most)
        except compression_networks.Absent as error:
            absent.append(f"{name} is left out: {error}")
            continue
        several = strategies_built.judged(plan, rows)
        scores[name] = strategies_built.scored(rows, several)
        _write(cache / name / "columns.csv", strategies_built.Row._fields, rows)
        _write(cache / name / "verdicts.csv", strategies_built.Judged._fields, several)
        for note in notes:
            print(f"{name}: {note}", file=sys.stderr)
    for line in absent:
        print(line, file=sys.stderr)
    if options.json:
        print(json.dumps({name: asdict(score) for name, score in scores.items()}))
    elif scores:
        Console(width=170).print(_built_table(scores))
    if not scores:
        return 2
    return 0 if not absent and all(score.kept for score in scores.values()) else 1


def _built_table(scores: Mapping[str, Score]) -> Table:
    result = Table(title="Predicted against built and measured (%, Spearman of 1)")
    result.add_column("network")
    names = [one.name for one in fields(Score)]
    for name in names:
        result.add_column(name.replace("_", " "), justify="right")
    for network, score in scores.items():
        cells = []
        for name in names:
            value = getattr(score, name)
            if value is None:
                cells.append("-")
            elif name in ("built", "spearman"):
                cells.append(f"{value:.3g}")
            else:
                cells.append(f"{100 * value:.1f}")
        result.add_row(network, *cells)
    result.caption = "; ".join(f"{k}: {v}" for k, v in strategies_built.TARGETS.items())
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; 0, 1 where a target is missed, 2 without the data."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--published", action="store_true", help="choices among published networks")
    parser.add_argument("--data", type=Path, default=Path("../shared/measured"))
    parser.add_argument("--out", type=Path, default=Path("runs/strategies"))
    parser.add_argument("--draws", type=int, default=choices.DRAWS)
    parser.add_argument("--seed", type=int, default=choices.SEED)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=strategies_built.NETWORKS,
        default=strategies_built.NETWORKS,
        help="networks that are built",
    )
    parser.add_argument("--images", type=Path, default=Path("../shared/images"))
    parser.add_argument("--cache", type=Path, default=Path("runs/strategies_built"))
    parser.add_argument("--most", type=int, help="build so many strategies of a network alone")
    parser.add_argument("--epochs", type=int, default=4, help="that a pruned network is trained")
    parser.add_argument("--student-epochs", type=int, default=30, help="that a student is taught")
    options = parser.parse_args(arguments)
    if not options.published:
        return built(options)
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
