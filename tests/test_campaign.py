"""Campaigns of simulated engines on this computer, and ahead of a board."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness import campaign
from harness.boards.session import EngineRequest, MeasurePlan, Session
from harness.errors import BuildError
from harness.records import BoardSpec, Failure, Measurement
from harness.store import Store

PLAN = MeasurePlan(warmup_s=0.0, rounds=2, block_s=0.0, block_min=2, drop=0)


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    cache_dir = str(tmp_path / "cache")
    spec = BoardSpec(name="local", python=sys.executable, runtime="fake", cache_dir=cache_dir)
    with Session(spec, nonce="test") as opened:
        yield opened


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "m.db") as opened:
        yield opened


def entry(folder: Path, label: str, **settings: object) -> campaign.Entry:
    def prepare() -> list[EngineRequest]:
        path = folder / label
        path.write_text(json.dumps({"latency_s": 0.001, "label": label, **settings}))
        return [EngineRequest(label=label, path=path, precision="fp32")]

    return campaign.Entry(label=label, prepare=prepare)


def test_failures_are_named_and_the_rest_is_measured(
    session: Session, store: Store, tmp_path: Path
) -> None:
    def broken() -> list[EngineRequest]:
        raise BuildError("no such layer")

    entries = [
        entry(tmp_path, "good"),
        entry(tmp_path, "segfault", signal=11),
        campaign.Entry(label="unbuilt", prepare=broken),
        entry(tmp_path, "unsupported", fail="operator Foo"),
        entry(tmp_path, "also good"),
    ]
    done: list[tuple[int, int]] = []
    result = campaign.run(
        session, store, entries, plan=PLAN, name="c", on_progress=lambda *n: done.append(n)
    )
    assert list(result.measured) == ["good", "also good"]
    kinds = {failure.label: (failure.kind, failure.reason) for failure in result.failures}
    assert kinds["segfault"][0] == "StableBoardError"
    assert "SIGSEGV" in kinds["segfault"][1]
    assert kinds["unbuilt"] == ("BuildError", "no such layer")
    assert "operator Foo" in kinds["unsupported"][1]
    assert store.all(Failure) == result.failures
    assert done[0] == (0, 5)
    assert done[-1] == (5, 5)


def test_campaign_that_was_interrupted_goes_on_and_measures_nothing_twice(
    session: Session, store: Store, tmp_path: Path
) -> None:
    entries = [entry(tmp_path, name) for name in "abc"]

    def interrupt() -> list[EngineRequest]:
        raise KeyboardInterrupt

    stopped = [entries[0], campaign.Entry(label="b", prepare=interrupt)]
    with pytest.raises(KeyboardInterrupt):
        campaign.run(session, store, stopped, plan=PLAN, name="c")
    (first,) = store.all(Measurement)
    result = campaign.run(session, store, entries, plan=PLAN, name="c")
    assert result.measured["a"] == (first,)
    assert [m.label for m in store.all(Measurement)] == ["a", "b", "c"]
    again = campaign.run(session, store, entries, plan=PLAN, name="c")
    assert again.measured == result.measured
    assert (again.busy_s, again.busy_share) == (0.0, 1.0)


def test_label_twice_is_refused(session: Session, store: Store, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="label twice"):
        campaign.run(session, store, [entry(tmp_path, "a")] * 2, plan=PLAN, name="c")


@pytest.mark.parametrize(("host", "ahead"), [(None, False), ("board", True)])
def test_next_candidate_is_made_while_a_board_measures_and_never_on_this_computer(
    session: Session,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    host: str | None,
    ahead: bool,
) -> None:
    monkeypatch.setattr(session, "_spec", replace(session.spec, host=host))
    second_made = threading.Event()
    seen: list[bool] = []
    measure = session.measure

    def watched(engines: list[EngineRequest], **options: object) -> tuple[Measurement, ...]:
        if engines[0].label == "a":
            seen.append(second_made.wait(2.0 if ahead else 0.2))
        return measure(engines, **options)  # type: ignore[arg-type]

    def second() -> list[EngineRequest]:
        second_made.set()
        return list(entry(tmp_path, "b").prepare())

    monkeypatch.setattr(session, "measure", watched)
    entries = [entry(tmp_path, "a"), campaign.Entry(label="b", prepare=second)]
    result = campaign.run(session, store, entries, plan=PLAN, name="c")
    assert list(result.measured) == ["a", "b"]
    assert seen == [ahead]
