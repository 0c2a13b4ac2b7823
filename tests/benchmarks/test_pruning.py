"""What the pruning benchmark reads and asks for."""

from pathlib import Path

import pytest

from harness.records import Group, Option, Strategy, StrategyEntry
from tests.benchmarks import pruning


def group(channels: int, name: str = "g") -> Group:
    return Group(name=name, channels=channels, producers=(name,), consumers=("c",), prunable=True)


def test_widths_are_whole_steps_and_a_few_below_one() -> None:
    assert pruning.widths_of("resnet56", group(16)) == [2, 4, 8, 16]
    assert pruning.widths_of("resnet56", group(32)) == [2, 4, 8, 16, 32]
    assert pruning.widths_of("resnet56", group(64)) == [2, 4, 8, 16, 32, 48, 64]
    assert pruning.widths_of("efl0", group(96)) == [16, 32, 48, 64, 80, 96]


def test_bottlenecks_and_what_cannot_be_pruned_stay_whole() -> None:
    assert pruning.widths_of("efl0", group(320, "_blocks.15._project_conv")) == [320]
    fixed = Group(name="fc", channels=10, producers=("fc",), consumers=(), prunable=False)
    assert pruning.widths_of("resnet56", fixed) == [10]


def test_uniform_choices_keep_equally_wide_groups_equal_and_take_int8() -> None:
    def options(*widths: int) -> tuple[Option, ...]:
        return tuple(
            Option(channels=width, precision=precision)  # type: ignore[arg-type]
            for width in widths
            for precision in ("fp32", "int8")
        )

    found = pruning.uniform_choices(
        {"a": options(8, 16), "b": options(8, 16), "c": options(8, 16, 32), "fc": options(10)}
    )
    assert len(found) == 2 * 3
    assert all(choice["a"] == choice["b"] for choice in found)
    assert {choice["fc"].precision for choice in found} == {"int8"}
    assert {(c["a"].channels, c["c"].channels) for c in found} == {
        (narrow, wide) for narrow in (8, 16) for wide in (8, 16, 32)
    }


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
    (entry,) = pruning._rounded(strategy).entries
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
