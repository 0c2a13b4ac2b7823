"""What the pruning benchmark reads and asks for."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.records import Group, Interval, Strategy, StrategyEntry
from tests.benchmarks import pruning, pruning_bench, pruning_search
from tests.benchmarks.pruning_search import Plan, Search, Tried


def group(channels: int, name: str = "g") -> Group:
    return Group(name=name, channels=channels, producers=(name,), consumers=("c",), prunable=True)


def test_widths_are_whole_steps() -> None:
    assert pruning_bench.widths_of(group(16)) == [16]
    assert pruning_bench.widths_of(group(64)) == [16, 32, 48, 64]
    assert pruning_bench.widths_of(group(96)) == [16, 32, 48, 64, 80, 96]


def test_bottlenecks_and_what_cannot_be_pruned_stay_whole() -> None:
    assert pruning_bench.widths_of(group(320, "_blocks.15._project_conv")) == [320]
    fixed = Group(name="fc", channels=10, producers=("fc",), consumers=(), prunable=False)
    assert pruning_bench.widths_of(fixed) == [10]


def test_what_is_too_slow_or_too_large_does_not_fit() -> None:
    plan = Plan(task="T3", network="resnet56", methods=("prune",), latency=0.3, size=0.15)
    strategy = Strategy(label="x", methods=("prune",), entries=(), epochs=0, seed=0)

    def tried(high: float, size: float) -> Tried:
        interval = Interval(0.2, high, 0.95)
        return Tried(
            branches=1,
            strategy=strategy,
            ratio=0.25,
            interval=interval,
            loss=0.0,
            size=size,
            path=Path(),
        )

    assert tried(0.3, 0.15).within(plan, 1.0)
    assert not tried(0.31, 0.15).within(plan, 1.0)
    assert not tried(0.3, 0.15).within(plan, 0.99)
    assert not tried(0.3, 0.16).within(plan, 1.0)


class Linear(Search):
    """A search among branches each of which saves 0.05 of the time and 0.08 of the file."""

    def __init__(self, plan: Plan) -> None:
        bench = SimpleNamespace(
            order=lambda *_: [None] * 10,
            start=lambda *_, **__: SimpleNamespace(groups=()),
            strategy=lambda *_: None,
            sensitivities=SimpleNamespace(total=lambda *_: 0.0),
        )
        super().__init__(bench, plan)

    def _measure_together(self) -> None:
        pass

    def _measured(self, name: str, count: int, strategy: Strategy, loss: float) -> Tried:
        ratio = 1 - 0.05 * count
        return Tried(
            branches=count,
            strategy=strategy,
            ratio=ratio,
            interval=Interval(ratio - 0.001, ratio + 0.001, 0.95),
            loss=loss,
            size=1 - 0.08 * count,
            path=Path(f"{count}-{name}"),
        )

    def _say(self, one: Tried, name: str) -> None:
        pass


def test_starts_are_without_as_many_branches_as_it_takes_and_some_fewer() -> None:
    def starts(latency: float, size: float | None = None) -> list[int]:
        plan = Plan(task="T2", network="efl0", methods=("prune",), latency=latency, size=size)
        return Linear(plan)._starts()

    assert starts(0.76) == [3, 5]
    assert starts(0.98) == [0, 1]
    assert starts(0.2) == [8, 10]  # out of reach: all that can go
    assert starts(0.76, 0.85) == [3, 5]
    assert starts(0.76, 0.4) == [3, 5, 6, 8]


def test_what_misses_its_budget_when_it_is_built_is_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Drafts are measured a tenth quicker than what is built of them.
    class Built(Linear):
        def __init__(self, plan: Plan) -> None:
            super().__init__(plan)
            stages = SimpleNamespace(
                stage=lambda name, _, compute: named.append(name) or compute(),
                stages=[SimpleNamespace(wall_s=1.0)],
            )
            self.bench.folder = tmp_path
            self.bench.bench = SimpleNamespace(
                folder=stages, baseline_path=tmp_path, baseline_size_bytes=100
            )
            self.bench.session, self.bench.groups = None, [group(8)]
            self.bench.subject = SimpleNamespace(test=[0])
            self.bench.quality = lambda _: {}

        def _rounds(self, count: int, precisions: tuple[str, ...]) -> None:
            del precisions
            strategy = Strategy(label=f"{count}", methods=(), entries=(), epochs=0, seed=0)
            self.tried.append(self._measured("1", count, strategy, 0.0))

        def _divergence(self, one: Tried) -> float:
            return float(one.branches)

        def _built(self, start: object, strategy: Strategy, stem: Path) -> Path:
            del start
            path = tmp_path / f"{stem.name}.onnx"
            path.write_bytes(bytes(10))
            built.append((path, int(strategy.label)))
            return path

    def ratio(_session: object, _base: Path, path: Path, _plan: object) -> tuple[float, Interval]:
        found = 1.1 * (1 - 0.05 * dict(built)[path])
        return found, Interval(found, found, 0.95)

    monkeypatch.setattr(pruning_search, "surest_ratio", ratio)
    named: list[str] = []
    built: list[tuple[Path, int]] = []
    plan = Plan(task="T2", network="efl0", methods=("prune",), latency=0.76)
    row = Built(plan).found()
    # 5 branches are 0.75 as a draft and 0.825 as built; 7 are 0.65 and 0.715.
    assert [branches for _, branches in built] == [5, 7]
    assert row["met"] and row["latency_ratio"] == pytest.approx(0.715)
    assert row["file"] == "efl0-prune-0.76-again-2.onnx"
    assert named == ["allocate efl0-prune-0.76", "allocate efl0-prune-0.76-again-2"]


def test_what_may_fit_is_measured_again_in_one_campaign(monkeypatch: pytest.MonkeyPatch) -> None:
    campaigns: list[list[Path]] = []

    def ratios(_session: object, _base: Path, paths: list[Path], _plan: object) -> list[object]:
        campaigns.append(paths)
        return [(0.9, Interval(0.89, 0.91, 0.95)) for _ in paths]

    monkeypatch.setattr(pruning_search, "surest_ratios", ratios)
    search = Linear(Plan(task="T2", network="efl0", methods=("prune",), latency=0.6))
    search.bench.session, search.bench.bench = None, SimpleNamespace(baseline_path=Path())
    strategy = Strategy(label="x", methods=("prune",), entries=(), epochs=0, seed=0)
    search.tried = [search._measured("1", count, strategy, 0.0) for count in (2, 5, 9)]
    Search._measure_together(search)
    # 0.9 of fp32's time is more than 1.4 of 0.6; 0.75 and 0.55 may be kept at another pace.
    assert campaigns == [[Path("5-1"), Path("9-1")]]
    assert [one.ratio for one in search.tried] == pytest.approx([0.9, 0.9, 0.9])
    assert search.tried[0].interval.low == pytest.approx(0.899)
    search.tried = search.tried[:1]
    Search._measure_together(search)
    assert len(campaigns) == 1


def test_drafts_of_one_start_and_round_have_files_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exported(
        _network: object, _start: object, strategy: Strategy, stem: Path, *_, **__
    ) -> Path:
        path = Path(f"{stem}.onnx")
        path.parent.mkdir(exist_ok=True)
        path.write_text(strategy.entries[0].precision)
        return path

    interval = Interval(0.5, 0.5, 0.95)
    monkeypatch.setattr(pruning_search, "surest_ratio", lambda *_: (0.5, interval))
    search = Linear(Plan(task="T2", network="efl0", methods=("prune",), latency=0.6))
    search.bench.folder, search.bench.session = tmp_path, None
    search.bench.cut, search.bench.exported = lambda *_: None, exported
    search.bench.images, search.bench.learn = [0], lambda *_: None
    search.bench.bench = SimpleNamespace(baseline_path=Path(), baseline_size_bytes=10)
    for precision in ("fp32", "int8", "fp32"):
        entry = StrategyEntry(group="g", kept=(0,), of=1, precision=precision)
        strategy = Strategy(label="x", methods=(), entries=(entry,), epochs=0, seed=0)
        Search._measured(search, "1", 3, strategy, 0.0)
    # The third is the first again; neither is written over by another.
    assert [one.path.read_text() for one in search.tried] == ["fp32", "int8"]


def test_what_may_be_rounded_is_allocated_in_int8_alone_too() -> None:
    both = Plan(task="T3", network="efl0", methods=("prune", "quantize"), latency=0.4)
    assert Linear(both)._menus() == [("fp32", "int8"), ("int8",)]
    assert Linear(replace(both, afterwards=True))._menus() == [("fp32",)]
    assert Linear(replace(both, methods=("quantize",)))._menus() == [("fp32", "int8"), ("int8",)]


def test_a_budget_that_was_missed_is_aimed_below() -> None:
    search = Linear(Plan(task="T2", network="efl0", methods=("prune",), latency=0.76))
    search.aim = 0.9
    assert search._starts() == [5, 7]


def test_every_plan_has_files_of_its_own() -> None:
    labels = [plan.label for plan in pruning.PLANS]
    assert len(set(labels)) == len(labels)


def test_what_is_rounded_afterwards_keeps_its_channels() -> None:
    strategy = Strategy(
        label="x",
        methods=("prune",),
        entries=(StrategyEntry(group="g", kept=(0, 2), of=4, precision="fp32"),),
        epochs=0,
        seed=0,
    )
    (entry,) = pruning_search._rounded(strategy).entries
    assert (entry.kept, entry.precision) == ((0, 2), "int8")


def test_peers_rows_take_their_times_from_the_rows_of_times(tmp_path: Path) -> None:
    columns = "task,network,peer,setting,budget,achieved,top1,agreement,latency_ratio,wall_s,note"
    table = tmp_path / "results.csv"
    table.write_text(
        f"{columns}\n"
        "T2,resnet56,a,tuned,MACs<=0.5,MACs 0.5,0.9,0.91,,12,net_50 ratio=0.3\n"
        "T2lat,resnet56,runtime,net_50_ft,,,,,0.6,,quiet\n"
        "T3,resnet56,b,s8,,,0.8,0.8,0.4,,other\n"
    )
    (row,) = pruning.peers(table, "T2", ["resnet56"], print)
    assert row["latency_ratio"] == pytest.approx(0.6)
    assert (row["top1"], row["wall_s"], row["kl"]) == (0.9, 12.0, None)
    (row,) = pruning.peers(table, "T3", ["resnet56"], print)
    assert (row["peer"], row["latency_ratio"]) == ("b", 0.4)


def test_without_the_peers_file_their_rows_are_left_out(tmp_path: Path) -> None:
    said: list[str] = []
    assert pruning.peers(tmp_path / "none.csv", "T2", ["resnet56"], said.append) == []
    assert "left out" in said[0]
