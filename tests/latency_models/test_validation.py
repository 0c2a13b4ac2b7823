import pytest

from latency_models import errors, validation
from latency_models.validation import NetworkError, read_table, summarise
from tests.latency_models.networks import MEASURED


def row(name, predicted, measured, *, precision="fp32", family="a", shares=()):
    return NetworkError(
        name=name,
        family=family,
        precision=precision,
        predicted_s=predicted,
        low_s=0.9 * predicted,
        high_s=1.1 * predicted,
        measured_s=measured,
        unsupported=(),
        shares=tuple(shares),
    )


def test_errors_by_hand():
    rows = [
        row("a", 1.05, 1.0),
        row("b", 1.8, 2.0, precision="int8"),
        row("c", 3.0, 4.0, family="b"),
    ]
    report = summarise(rows, coverage=0.9)
    # 5 %, 10 % and 25 %: median 10 %, mean 13.3 %, two within 10 %.
    assert report.median_error == pytest.approx(0.10)
    assert report.mape == pytest.approx(0.4 / 3)
    assert report.within10 == pytest.approx(2 / 3)
    assert report.spearman == pytest.approx(1.0)
    # 1.0 in 0.945..1.155; 2.0 not in 1.62..1.98; 4.0 not in 2.7..3.3.
    assert report.covered == pytest.approx(1 / 3)
    assert dict(report.by_family) == pytest.approx({"a": 0.075, "b": 0.25})
    assert dict(report.by_precision) == pytest.approx({"fp32": 0.15, "int8": 0.10})


def test_a_kinds_errors_are_those_of_the_networks_weighted_by_its_share():
    rows = [
        row("a", 1.1, 1.0, shares=[("conv_3x3", 0.5), ("gemm", 0.5)]),
        row("b", 0.8, 1.0, shares=[("conv_3x3", 1.0)]),
        row("c", 1.0, 1.0, shares=[("gemm", 1.0), ("view", 0.0)]),
    ]
    conv, gemm = summarise(rows, coverage=0.9).by_kind
    assert (conv.kind, gemm.kind) == ("conv_3x3", "gemm")
    # (0.5 + 1 + 0) / 3 of the time; (0.5 x 10 % + 1 x 20 %) / 1.5, signed (5 % - 20 %) / 1.5.
    assert (conv.share, conv.networks) == (pytest.approx(0.5), 2)
    assert conv.mape == pytest.approx(0.25 / 1.5)
    assert conv.bias == pytest.approx(-0.1)
    # Ranks of the shares 2 3 1, of the errors 3 1 2: 1 - 6 x 6 / (3 x 8) = -1/2.
    assert conv.correlation == pytest.approx(-0.5)


def test_a_kind_that_every_network_has_alike_explains_nothing():
    rows = [row(name, 1.0 + i, 1.0, shares=[("gemm", 1.0)]) for i, name in enumerate("abc")]
    (gemm,) = summarise(rows, coverage=0.9).by_kind
    assert gemm.correlation is None


def test_two_networks_have_no_rank():
    assert summarise([row("a", 1, 1), row("b", 2, 2)], coverage=0.9).spearman is None


def test_a_table_is_read_with_its_optional_columns(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text(
        "network,precision,batch,latency_ms,family,power_mode\nnets/a.onnx,fp16,2,12.5,res,\n"
    )
    (found,) = read_table(table)
    assert found.network == tmp_path / "nets" / "a.onnx"
    assert (found.precision, found.batch, found.latency_s) == ("fp16", 2, 0.0125)
    assert (found.family, found.power_mode, found.runtime) == ("res", None, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("network,precision,batch\n", "no column latency_ms"),
        ("network,precision,batch,latency_ms\na,fp32,1,quick\n", "line 2"),
        ("network,precision,batch,latency_ms\na,fp32,1,\n", "line 2: a positive latency_ms"),
        ("network,precision,batch,latency_ms\na,fp32,0,3\n", "positive batch"),
        ("network,precision,batch,latency_ms\n", "no rows"),
        ("network,precision,batch,latency_ms\na,fp32,1,-3\n", "positive latency_ms"),
    ],
)
def test_a_table_that_is_not_right_names_the_line(text, message, tmp_path):
    table = tmp_path / "t.csv"
    table.write_text(text)
    with pytest.raises(errors.FormatError, match=message):
        read_table(table)


def test_a_table_that_is_not_there_is_named(tmp_path):
    with pytest.raises(errors.FormatError, match=r"gone\.csv cannot be read"):
        read_table(tmp_path / "gone.csv")


def test_a_table_to_predict_from_needs_no_measurements(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("network,precision,batch\na.onnx,fp32,1\n")
    (found,) = read_table(table, measured=False)
    assert (found.latency_s, found.line) == (None, 2)


def test_the_published_tables_are_read():
    if not MEASURED.is_dir():
        pytest.skip("the measured tables are not here")
    rows = read_table(MEASURED / "jetson_nano" / "timm_ort_fp32_cpu.csv")
    assert len(rows) == 123
    assert all(r.network.exists() for r in rows)


def test_nothing_to_validate_is_refused():
    with pytest.raises(ValueError, match="measured networks"):
        validation.validate(None, [])
