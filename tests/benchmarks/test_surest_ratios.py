"""Ratios of several files' times, from campaigns made by hand."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.benchmarks import ratios


class Session:
    """Gives one campaign after the other: (ratio, spread) of each file."""

    def __init__(self, campaigns: list[list[tuple[float, float]]]) -> None:
        self.campaigns, self.asked = campaigns, 0

    def measure(self, requests: list[object], **_: object) -> list[object]:
        taken = self.campaigns[self.asked]
        self.asked += 1
        assert len(requests) == len(taken) + 1
        return [None, *(SimpleNamespace(ratio=r, spread=s) for r, s in taken)]


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(ours: SimpleNamespace, *_: object) -> tuple[float, ratios.Interval]:
        half = ours.ratio * ours.spread / 2
        return ours.ratio, ratios.Interval(ours.ratio - half, ours.ratio + half, 0.95)

    monkeypatch.setattr(ratios, "ratio_of_medians", of)
    monkeypatch.setattr(ratios, "ratio_of_quickest", of)


def found(session: Session) -> list[float]:
    paths = [Path("a.onnx"), Path("b.onnx")]
    several = ratios.surest_ratios(session, Path("base"), paths, ratios.PLAN)  # type: ignore[arg-type]
    return [ratio for ratio, _ in several]


def test_a_campaign_that_is_certain_of_all_is_taken() -> None:
    session = Session([[(0.3, 0.01), (0.5, 0.2)], [(0.36, 0.02), (0.6, 0.05)]])
    assert found(session) == [0.36, 0.6]
    assert session.asked == 2


def test_where_none_is_certain_the_surest_campaign_is_taken_whole() -> None:
    session = Session(
        [[(0.3, 0.01), (0.5, 0.2)], [(0.36, 0.08), (0.6, 0.09)], [(0.31, 0.01), (0.5, 0.3)]]
    )
    assert found(session) == [0.36, 0.6]
