"""The measurements that a verdict rests on, with a session that only notes what it was asked."""

from types import SimpleNamespace

import pytest

from harness import candidates


class Bench:
    """What ``final_measurements`` needs of a workbench; every measurement takes a second."""

    sustain_s = 0.0

    def __init__(self):
        self.stored, self.asked, self.kept = [], [], {}
        self.store = SimpleNamespace(add=self.stored.append, all=lambda _: list(self.stored))
        self.session = SimpleNamespace(measure=self._measure)
        self.folder = SimpleNamespace(stage=self._stage)

    def _measure(self, engines, *, plan, campaign):
        del plan
        self.asked.append((campaign, [engine.label for engine in engines]))
        return [SimpleNamespace(label=e.label, campaign=campaign) for e in engines]

    def _stage(self, name, kind, compute):
        del kind
        if name not in self.kept:
            self.kept[name] = compute()
        return self.kept[name]

    def request(self, label):
        return SimpleNamespace(label=label)

    def _remeasured(self, label, joined):
        return label, len(joined[label])

    def final(self, *labels, enough):
        return candidates.Workbench.final_measurements(
            self, labels, decided=lambda final: final[0][1] >= enough
        )


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(candidates.stats, "join", list)
    return Bench()


def test_campaigns_of_fewer_rounds_do_not_count(bench):
    assert bench.final("baseline", "joint 1", enough=1) == [("baseline", 1), ("joint 1", 1)]
    more = bench.final("baseline", "joint 1", "joint 2", enough=1)
    assert more == [("baseline", 1), ("joint 1", 1), ("joint 2", 1)]
    assert bench.asked == [
        ("final campaign 1", ["baseline", "joint 1"]),
        ("final campaign 2", ["baseline", "joint 1", "joint 2"]),
    ]


def test_the_same_candidates_are_not_measured_again(bench):
    first = bench.final("baseline", "joint 1", enough=2)
    assert first == bench.final("baseline", "joint 1", enough=2)
    assert [name for name, _ in bench.asked] == ["final campaign 1", "final campaign 2"]


def test_other_measurements_of_a_candidate_are_none_of_a_verdicts(bench):
    bench.store.add(SimpleNamespace(label="baseline", campaign="baseline"))
    assert bench.final("baseline", enough=1) == [("baseline", 1)]
