"""Measurements, profiles and frozen predictions in one append-only SQLite file.

Each record is committed in its own transaction the moment it arrives, so that an interruption
loses nothing. Rows are never changed: a prediction that was written before a variant's first
measurement stays as it was.

Schema history (``PRAGMA user_version``): 1, the first.
"""

import csv
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from harness import stats
from harness.errors import ConfigError
from harness.records import (
    Failure,
    ImportedSummary,
    LayerPrecision,
    Measurement,
    Prediction,
    Profile,
    dump,
    load,
)

__all__ = ["MUST_MATCH", "Store", "pool"]

SCHEMA_VERSION = 1
# One entry a version step: the statements that lead from version i to i + 1.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE record (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, label TEXT NOT NULL,"
        " network_sha256 TEXT NOT NULL, at TEXT NOT NULL, json TEXT NOT NULL)",
        "CREATE INDEX record_network ON record (kind, network_sha256)",
        "CREATE TRIGGER record_no_update BEFORE UPDATE ON record"
        " BEGIN SELECT RAISE(ABORT, 'the store is append-only'); END",
        "CREATE TRIGGER record_no_delete BEFORE DELETE ON record"
        " BEGIN SELECT RAISE(ABORT, 'the store is append-only'); END",
    ),
)
# What must be equal before samples of two runs may be pooled.
MUST_MATCH = (
    "network_sha256",
    "board",
    "runtime",
    "runtime_version",
    "precision",
    "batch",
    "threads",
    "power_mode",
    "timed",
)
Record = TypeVar("Record", Measurement, Profile, Prediction, Failure, ImportedSummary)
AnyRecord = Measurement | Profile | Prediction | Failure | ImportedSummary


class Store:
    """An open store; a context manager. ConfigError if ``path`` is no store or is a newer one's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(path, isolation_level=None)
        try:
            self._migrate()
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise ConfigError(
                f"{path} is not a measurement store ({error}); move it away and run again"
            ) from error

    def _migrate(self) -> None:
        self._connection.execute("PRAGMA journal_mode=WAL")
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise ConfigError(
                f"{self.path} has schema version {version}, this boardfit knows {SCHEMA_VERSION}; "
                "update boardfit or name another store"
            )
        for step in range(version, SCHEMA_VERSION):
            statements = "".join(f"{statement};" for statement in MIGRATIONS[step])
            self._connection.executescript(
                f"BEGIN; {statements} PRAGMA user_version = {step + 1}; COMMIT"
            )

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what was added is there already."""
        self._connection.close()

    def add(self, record: AnyRecord) -> None:
        """Append one record, durably."""
        self.add_all([record])

    def add_all(self, records: Sequence[AnyRecord]) -> None:
        """Append records that belong together: all of them or, if the host dies, none."""
        self._connection.execute("BEGIN")
        try:
            self._connection.executemany(
                "INSERT INTO record (kind, label, network_sha256, at, json) VALUES (?, ?, ?, ?, ?)",
                [_row(record) for record in records],
            )
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def all(self, kind: type[Record]) -> tuple[Record, ...]:
        """Every record of class ``kind`` in the order added."""
        rows = self._connection.execute(
            "SELECT json FROM record WHERE kind = ? ORDER BY id", (kind.__name__,)
        )
        return tuple(load(kind, text) for (text,) in rows)

    def runs(self) -> tuple[tuple[Measurement | ImportedSummary, Profile | None], ...]:
        """Every run in the order added, with the profile that was taken after it, if one was.

        A profile belongs to the last measurement of the same network by the same runtime, or to
        the first of its own campaign that has none yet.
        """
        kinds: dict[str, type[Measurement | ImportedSummary | Profile]] = {
            kind.__name__: kind for kind in (Measurement, ImportedSummary, Profile)
        }
        rows = self._connection.execute("SELECT kind, json FROM record ORDER BY id")
        found: list[tuple[Measurement | ImportedSummary, Profile | None]] = []
        of_engine: dict[tuple[str, str, str], list[int]] = {}
        for kind, text in rows:
            if kind not in kinds:
                continue
            record = load(kinds[kind], text)
            engine = (record.network_sha256, record.runtime, record.runtime_version)
            indices = of_engine.setdefault(engine, [])
            if not isinstance(record, Profile):
                indices.append(len(found))
                found.append((record, None))
            elif indices:
                index = next((i for i in indices if _waits(found[i], record)), indices[-1])
                found[index] = (found[index][0], record)
        return tuple(found)

    def first_prediction(
        self, network_sha256: str, layers: tuple[LayerPrecision, ...] = ()
    ) -> Prediction | None:
        """The frozen prediction of a network with its ``layers`` so: the first ever written."""
        rows = self._connection.execute(
            "SELECT json FROM record WHERE kind = 'Prediction' AND network_sha256 = ? ORDER BY id",
            (network_sha256,),
        )
        found = (load(Prediction, text) for (text,) in rows)
        return next((one for one in found if one.layers == layers), None)

    def export_csv(self, folder: Path) -> None:
        """Write ``measurements.csv`` (one row a measurement) and ``predictions.csv``."""
        _write_csv(
            folder / "measurements.csv",
            (
                "network",
                "precision",
                "batch",
                "latency_ms",
                "power_mode",
                "runtime",
                "label",
                "board",
                "campaign",
                "taken_at",
                "n_samples",
                "cv",
            ),
            (
                (
                    f"networks/{m.network_sha256}.onnx",
                    m.precision,
                    m.batch,
                    stats.median(m.samples_s) * 1e3,
                    m.power_mode,
                    f"{m.runtime} {m.runtime_version}",
                    m.label,
                    m.board,
                    m.campaign,
                    m.taken_at,
                    len(m.samples_s),
                    stats.coefficient_of_variation(m.samples_s),
                )
                for m in self.all(Measurement)
            ),
        )
        _write_csv(
            folder / "predictions.csv",
            (
                "label",
                "network_sha256",
                "latency_ms",
                "low_ms",
                "high_ms",
                "coverage",
                "latency_model_sha256",
                "made_at",
            ),
            (
                (
                    p.label,
                    p.network_sha256,
                    p.latency_s * 1e3,
                    p.interval.low * 1e3,
                    p.interval.high * 1e3,
                    p.interval.coverage,
                    p.latency_model_sha256,
                    p.made_at,
                )
                for p in self.all(Prediction)
            ),
        )


def _waits(run: tuple[Measurement | ImportedSummary, Profile | None], profile: Profile) -> bool:
    """Whether the profile was taken in the campaign of this run, which has none yet."""
    measured, known = run
    ours = measured.campaign if isinstance(measured, Measurement) else ""
    return known is None and ours != "" and ours == profile.campaign


def _row(record: AnyRecord) -> tuple[str, str, str, str, str]:
    kind, text = type(record).__name__, dump(record)
    if isinstance(record, Failure):
        return kind, record.label, "", record.at, text
    if isinstance(record, Measurement | ImportedSummary):
        return kind, record.label, record.network_sha256, record.taken_at, text
    if isinstance(record, Prediction):
        return kind, record.label, record.network_sha256, record.made_at, text
    return kind, record.network_sha256, record.network_sha256, "", text


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def pool(measurements: Sequence[Measurement]) -> tuple[float, ...]:
    """The samples of comparable runs together; ConfigError naming the field that differs."""
    first = measurements[0]
    for other in measurements[1:]:
        for name in MUST_MATCH:
            ours, theirs = getattr(first, name), getattr(other, name)
            if ours != theirs:
                raise ConfigError(
                    f"runs of {first.label} and {other.label} cannot be pooled: "
                    f"{name} is {ours!r} in one and {theirs!r} in the other"
                )
    return tuple(sample for m in measurements for sample in m.samples_s)
