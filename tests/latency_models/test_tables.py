import csv
import io

import onnx
import pytest

from latency_models import errors, graph, profiles, tables
from latency_models.building import Builder
from latency_models.profiles import Scales
from latency_models.validation import Item
from tests.latency_models.networks import MEASURED
from tests.latency_models.test_profiles import SMALL

ARM = "onnxruntime-cpu-arm"
SLOW = (
    '[clocks]\ncpu_hz = { value = 2e9, source = "s" }\nmemory_hz = { value = 2e9, source = "s" }\n'
    '[power_modes.SLOW]\ncpu_hz = { value = 1e9, source = "s" }\n'
    'memory_hz = { value = 1e9, source = "s" }\n'
)
PROFILE = profiles.parse(SMALL + SLOW, where="small.toml")


def quiet(done, total):
    pass


def chain(width, depth):
    """A chain of 3 x 3 convolutions, and a classifier."""
    b = Builder(f"chain_{width}_{depth}")
    x = b.input(1, 3, 32, 32)
    for _ in range(depth):
        x = b.relu(b.conv(x, width, window=3))
    b.output(b.gemm(b.flatten(b.global_pool(x)), 10))
    return b.model()


def seconds(path):
    """A made-up machine: a multiply-accumulate a nanosecond, and 20 us a kernel."""
    works = [graph.work(k) for k in graph.read(path, runtime=ARM)]
    return sum(w.macs for w in works) * 1e-9 + 20e-6 * len(works)


def write_table(folder, *, modes=("",), columns=("family", "power_mode"), name="table.csv"):
    """Twelve networks in two families and their table; in mode SLOW each takes twice its time."""
    lines = [",".join(["network", "precision", "batch", "latency_ms", *columns])]
    for width in (8, 16, 24, 32):
        for depth in (1, 2, 4):
            file = folder / f"chain_{width}_{depth}.onnx"
            if not file.exists():
                onnx.save(chain(width, depth), file)
            for mode in modes:
                taken = seconds(file) * (2 if mode else 1) * 1e3
                extra = {"family": "narrow" if width < 20 else "wide", "power_mode": mode}
                cells = [file.name, "fp32", "1", f"{taken:.9g}", *(extra[c] for c in columns)]
                lines.append(",".join(cells))
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


@pytest.fixture(scope="module")
def measured(folder):
    return tables.items(write_table(folder), profile=PROFILE, runtime=ARM, progress=quiet)


@pytest.fixture(scope="module")
def model(measured):
    return tables.calibrate(measured, profile=PROFILE, runtime=ARM)


def test_a_table_becomes_networks_with_their_kernels(measured):
    assert len(measured) == 12
    first = measured[0]
    assert (first.name, first.family, first.power_mode) == ("chain_8_1", "narrow", None)
    assert first.scales == Scales()
    # 32 x 32 x 8 x 9 x 3 of the convolution and 8 x 10 of the classifier.
    assert sum(w.macs for w in first.works) == 32 * 32 * 8 * 9 * 3 + 80


def test_progress_counts_the_rows(folder):
    seen = []
    table = write_table(folder, name="progress.csv")
    tables.items(
        table, profile=PROFILE, runtime=ARM, progress=lambda done, total: seen.append((done, total))
    )
    assert seen[0] == (0, 12)
    assert seen[-1] == (12, 12)


def test_a_graph_that_several_rows_share_is_read_once(folder, monkeypatch):
    read = []
    real = tables.works_of_row
    monkeypatch.setattr(tables, "works_of_row", lambda *a, **k: read.append(a) or real(*a, **k))
    table = write_table(folder, modes=("", "SLOW"), name="twice.csv")
    assert len(tables.items(table, profile=PROFILE, runtime=ARM, progress=quiet)) == 24
    assert len(read) == 12


def test_precision_and_batch_of_a_row_reach_the_graphs_reader(folder, monkeypatch):
    write_table(folder)
    asked = []
    real = graph.read

    def read(model, *, runtime, **options):
        asked.append(options)
        return real(model, runtime=runtime)

    monkeypatch.setattr(graph, "read", read)
    tables.works_of_row(folder / "chain_8_1.onnx", runtime=ARM, precision="fp16", batch=4)
    tables.works_of_row(folder / "chain_8_1.onnx", runtime=ARM)
    tables.works_of_row(folder / "chain_8_1.onnx", runtime=ARM, precision="int8")
    # int8 is what stands between the network's own Q/DQ pairs; the rest is fp32.
    plain = {"precision": "fp32", "batch": 1}
    assert asked == [{"precision": "fp16", "batch": 4}, plain, plain]


def item(name, *, family="f", mode=None):
    return Item(name, (), 1.0, family, "fp32", 1, mode)


def test_a_split_keeps_the_rows_of_a_network_together():
    rows = [item(name, mode=mode) for name in "abcdef" for mode in ("x", "y")]
    fold = tables.split(rows, count=7, seed=3)
    # Networks of two rows each: four of them are the first to give seven.
    assert (len(fold.fit), len(fold.rest)) == (8, 4)
    assert not {i.name for i in fold.fit} & {i.name for i in fold.rest}
    assert fold == tables.split(rows, count=7, seed=3)
    assert fold != tables.split(rows, count=7, seed=4)


def test_a_split_that_is_not_told_takes_half():
    rows = [item(name) for name in "abcdefghijkl"]
    assert len(tables.split(rows, count=None, seed=0).fit) == 6


def test_each_family_is_left_out_once():
    rows = [item(f"{family}{i}", family=family) for family in "ab" for i in range(6)]
    folds = tables.fold_out(rows, key="family")
    assert [fold.name for fold in folds] == ["a", "b"]
    assert {i.family for i in folds[0].fit} == {"b"}
    assert {i.family for i in folds[0].rest} == {"a"}
    assert len(tables.fold_out(rows, key="network")) == 12


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda rows: tables.split(rows, count=2, seed=0), "6 of 6 networks, of which 2"),
        (lambda rows: tables.split(rows, count=6, seed=0), "and 0 predicted"),
        (lambda rows: tables.fold_out(rows, key="family"), "without the family 'f' only 0 of 6"),
        (lambda rows: tables.fold_out(rows, key="colour"), "cannot leave out 'colour': there are"),
        (lambda rows: tables.calibrate(rows[:4], profile=PROFILE, runtime=ARM), "too few rows"),
    ],
)
def test_too_few_rows_are_counted(call, message):
    with pytest.raises(errors.FormatError, match=message):
        call([item(name) for name in "abcdef"])


def test_networks_that_were_held_out_are_predicted(measured):
    report = tables.validate(
        [tables.split(measured, count=9, seed=0)],
        profile=PROFILE,
        runtime=ARM,
        coverage=0.9,
        progress=quiet,
    )
    # The machine knows neither caches nor lanes, which the formula does: near, not exact.
    assert report.median_error < 0.15
    assert {"conv_direct", "gemm"} & {kind.kind for kind in report.by_kind}
    assert sum(share for _, share in report.networks[0].shares) == pytest.approx(1.0)


def test_each_fold_is_predicted_by_a_model_that_never_saw_it(measured):
    seen = []
    report = tables.validate(
        tables.fold_out(measured, key="family"),
        profile=PROFILE,
        runtime=ARM,
        coverage=0.8,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert len(report.networks) == 12
    assert dict(report.by_family).keys() == {"narrow", "wide"}
    assert report.coverage == 0.8
    assert seen == [(0, 2), (1, 2), (2, 2)]


def test_a_power_mode_is_calibrated_in_the_references_terms(folder, model):
    # Every clock halved doubles every time, so the slow rows say just what the fast ones said.
    table = write_table(folder, modes=("SLOW",), name="slow.csv")
    slow = tables.items(table, profile=PROFILE, runtime=ARM, progress=quiet)
    assert slow[0].scales == Scales(0.5, 0.5, 0.5)
    again = tables.calibrate(slow, profile=PROFILE, runtime=ARM)
    works = slow[-1].works
    assert again.predict(works) == pytest.approx(model.predict(works), rel=1e-3)


def test_a_table_is_predicted_in_its_power_modes(folder, model):
    table = folder / "ask.csv"
    table.write_text(
        "network,precision,batch,latency_ms,power_mode\n"
        "chain_8_1.onnx,fp32,1,0.5,\nchain_8_1.onnx,fp32,1,,slow\n"
    )
    fast, slow = tables.predict(model, table, coverage=0.9, progress=quiet)
    assert slow.predicted_s == pytest.approx(2 * fast.predicted_s)
    assert fast.low_s < fast.predicted_s < fast.high_s
    rows = list(csv.DictReader(io.StringIO(tables.predictions_csv([fast, slow], table=table))))
    assert list(rows[0]) == [
        "network",
        "precision",
        "batch",
        "predicted_ms",
        "lower_ms",
        "upper_ms",
        "measured_ms",
        "flagged",
        "power_mode",
    ]
    assert [row["network"] for row in rows] == ["chain_8_1.onnx"] * 2
    assert [row["measured_ms"] for row in rows] == ["0.5", ""]
    assert float(rows[1]["predicted_ms"]) == pytest.approx(slow.predicted_s * 1e3, rel=1e-5)
    assert [row["flagged"] for row in rows] == ["", ""]


def test_kinds_that_were_never_measured_are_flagged(folder, model):
    b = Builder("deep")
    b.output(b.relu(b.conv(b.input(1, 16, 8, 8), 16, window=3, groups=16)))
    onnx.save(b.model(), folder / "depthwise.onnx")
    table = folder / "flag.csv"
    table.write_text("network,precision,batch\ndepthwise.onnx,fp32,1\n")
    found = tables.predict(model, table, coverage=0.9, progress=quiet)
    assert ("conv_depthwise", "fp32") in found[0].unsupported
    assert "conv_depthwise fp32" in tables.predictions_csv(found, table=table)
    assert "power_mode" not in tables.predictions_csv(found, table=table)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("gone.onnx,fp32,1,1,,", r"line 2: .*gone\.onnx does not exist"),
        ("bad.onnx,fp32,1,1,,", r"line 2: .*bad\.onnx is not an ONNX file"),
        ("empty.onnx,fp32,1,1,,", r"line 2: .*empty\.onnx"),
        ("a.onnx,int4,1,1,,", "line 2: the profile small has no precision 'int4', only fp32"),
        ("a.onnx,fp32,1,1,onnxruntime-cpu,", "line 2: measured with onnxruntime-cpu, not"),
        ("a.onnx,fp32,1,1,,TURBO", "no power mode 'TURBO': there are SLOW"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path, row, message):
    (tmp_path / "bad.onnx").write_bytes(b"not onnx")
    (tmp_path / "empty.onnx").write_bytes(b"")
    table = tmp_path / "t.csv"
    table.write_text(f"network,precision,batch,latency_ms,runtime,power_mode\n{row}\n")
    with pytest.raises(errors.LatencyError, match=message):
        tables.items(table, profile=PROFILE, runtime=ARM, progress=quiet)


def test_an_unknown_runtime_names_those_there_are():
    with pytest.raises(errors.FormatError, match=r"unknown runtime 'abacus'.*onnxruntime-cpu-arm"):
        tables.check_runtime("abacus")


def test_a_precision_that_the_model_has_not_is_refused(folder, model):
    table = folder / "precision.csv"
    table.write_text("network,precision,batch\nchain_8_1.onnx,fp16,1\n")
    with pytest.raises(errors.FormatError, match="line 2: the latency model of small has no"):
        tables.predict(model, table, coverage=0.9, progress=quiet)


def test_the_nanos_cores_are_predicted_from_fifty_networks():
    if not MEASURED.is_dir():
        pytest.skip("the measured tables are not here")
    nano = profiles.load("jetson-nano-cpu")
    measured = tables.items(
        MEASURED / "jetson_nano" / "timm_ort_fp32_cpu.csv",
        profile=nano,
        runtime=nano.runtime,
        progress=quiet,
    )
    report = tables.validate(
        [tables.split(measured, count=50, seed=0)],
        profile=nano,
        runtime=nano.runtime,
        coverage=0.9,
        progress=quiet,
    )
    assert len(report.networks) == 73
    assert report.median_error < 0.06
    assert report.spearman > 0.97
