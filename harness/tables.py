"""What the commands do with a measurement table, for which no board is needed."""

from dataclasses import dataclass
from pathlib import Path

from harness import commands
from harness.errors import ConfigError, latency_errors
from harness.folder import write_atomically
from harness.progress import ConsoleObserver
from harness.report import heldout
from latency_models import calibration, profiles, tables, validation

__all__ = ["TableValidation", "calibrate", "predict", "validate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TableValidation:
    """Held-out errors over a measurement table; ``title`` says what was calibrated on what."""

    title: str
    report: validation.Report


@latency_errors()
def validate(
    table: Path,
    *,
    profile: str | None,
    runtime: str | None,
    split: int | None,
    leave_out: str | None,
    seed: int,
    coverage: float,
    out: Path | None,
) -> TableValidation:
    """``boardfit validate --table``: calibrate on a part of a table, predict the rest of it."""
    if split is not None and leave_out is not None:
        raise ConfigError("--split and --leave-out are two ways to hold out; give one of them")
    board, rules = _table_board(profile, runtime)
    with ConsoleObserver() as observer:
        with observer.stage(f"read the graphs of {table.name}"):
            items = tables.items(table, profile=board, runtime=rules, progress=observer.progress)
        if leave_out is None:
            chosen = tables.split(items, count=split, seed=seed)
            folds: tuple[tables.Fold, ...] = (chosen,)
            how = f"calibrated on {chosen.name}, seed {seed}"
        else:
            folds = tables.fold_out(items, key=leave_out)
            how = f"one {leave_out.replace('_', ' ')} of {len(folds)} left out at a time"
        with observer.stage("calibrate and predict"):
            found = tables.validate(
                folds,
                profile=board,
                runtime=rules,
                coverage=coverage,
                progress=observer.progress,
            )
    result = TableValidation(
        title=f"{table.name}: {board.name}, {rules}, {how}, {len(found.networks)} rows predicted",
        report=found,
    )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        heldout.write(result.report, out / heldout.PAGE, title=result.title)
        write_atomically(
            out / "validation.json", heldout.text_json(result.report, title=result.title)
        )
    return result


@latency_errors()
def calibrate(
    table: Path, *, profile: str | None, runtime: str | None, out: Path
) -> tuple[calibration.LatencyModel, Path]:
    """``boardfit calibrate --table``: a latency model fitted to a table, and where it lies.

    ``out`` is the model's file, or a folder for it.
    """
    board, rules = _table_board(profile, runtime)
    with ConsoleObserver() as observer:
        with observer.stage(f"read the graphs of {table.name}"):
            items = tables.items(table, profile=board, runtime=rules, progress=observer.progress)
        with observer.stage("calibrate"):
            model = tables.calibrate(items, profile=board, runtime=rules)
    path = out if out.suffix == ".json" else out / "latency_model.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, model.to_json())
    return model, path


@latency_errors()
def predict(
    table: Path, *, latency_model: Path, coverage: float, out: Path
) -> tuple[tables.Prediction, ...]:
    """``boardfit predict --table``: every row of a table by a saved latency model, into ``out``."""
    model = commands.load_model(latency_model)
    with ConsoleObserver() as observer, observer.stage(f"read the graphs of {table.name}"):
        found = tables.predict(model, table, coverage=coverage, progress=observer.progress)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, tables.predictions_csv(found, table=table))
    return found


def _table_board(profile: str | None, runtime: str | None) -> tuple[profiles.BoardProfile, str]:
    """The board's profile and the runtime whose fusion rules to use, its own unless named."""
    if profile is None:
        raise ConfigError(
            "--table needs --profile, the datasheet that calibration starts from: "
            f"{', '.join(profiles.available())}, or a .toml file like them"
        )
    board = profiles.load(profile)
    return board, tables.check_runtime(runtime or board.runtime)
