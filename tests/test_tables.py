"""The commands that need a measurement table and no board."""

import csv
import json

import onnx
import pytest

from latency_models.building import Builder
from tests.latency_models.test_tables import SLOW, SMALL, write_table
from tests.test_cli import run as run_arguments


def run(capsys, line):
    """Exit code, stdout and stderr of a command line without blanks in its words."""
    return run_arguments(capsys, *line.split())


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Twelve networks in two families, a board profile, and the folder as working folder."""
    monkeypatch.chdir(tmp_path)
    board = SMALL.replace('"tensorrt"', '"onnxruntime-cpu-arm"') + SLOW
    (tmp_path / "small.toml").write_text(board)
    return write_table(tmp_path)


def test_a_table_is_validated_on_a_split_with_a_page(table, capsys):
    code, out, err = run(
        capsys, "validate --table table.csv --profile small.toml --split 8 --out held"
    )
    assert code == 0, err
    assert "table.csv: small, onnxruntime-cpu-arm, calibrated on 8 of 12 rows, seed 0" in out
    assert "4 rows: median absolute error" in out
    assert "By kernel kind" in out
    assert "Report: held/validation.html" in out
    assert "read the graphs of table.csv" in err
    assert (table.parent / "held" / "validation.html").stat().st_size > 10**6
    kept = json.loads((table.parent / "held" / "validation.json").read_text())
    assert len(kept["networks"]) == 4


@pytest.mark.usefixtures("table")
def test_each_family_is_left_out_and_printed_as_json(capsys):
    code, out, err = run(
        capsys, "validate --table table.csv --profile small.toml --leave-out family --json"
    )
    assert code == 0, err
    found = json.loads(out)
    assert found["title"].endswith("one family of 2 left out at a time, 12 rows predicted")
    assert set(found["by_family"]) == {"narrow", "wide"}
    assert len(found["networks"]) == 12


def test_a_model_of_a_table_predicts_networks_and_tables(table, capsys):
    code, out, err = run(
        capsys, "calibrate --table table.csv --profile small.toml --out model.json"
    )
    assert code == 0, err
    assert "Latency model: model.json" in out
    assert json.loads((table.parent / "model.json").read_text())["runtime"] == "onnxruntime-cpu-arm"

    ask = "predict chain_16_2.onnx --latency-model model.json --json"
    code, out, err = run(capsys, ask)
    assert code == 0, err
    fast = json.loads(out)
    # Two convolutions with their activations fused in, pool, flatten and classifier.
    assert [kernel["kind"] for kernel in fast["kernels"]].count("gemm") == 1
    assert fast["interval_s"]["low"] < fast["latency_s"] < fast["interval_s"]["high"]
    code, out, err = run(capsys, f"{ask} --power-mode slow")
    assert json.loads(out)["latency_s"] == pytest.approx(2 * fast["latency_s"])

    code, out, err = run(capsys, "predict --table table.csv --latency-model model.json --out p.csv")
    assert code == 0, err
    assert "Predictions of 12 rows: p.csv" in out
    assert "12 of them measured" in out
    with (table.parent / "p.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 12
    (row,) = [row for row in rows if row["network"] == "chain_16_2.onnx"]
    assert float(row["predicted_ms"]) == pytest.approx(fast["latency_s"] * 1e3, rel=1e-5)
    assert float(row["lower_ms"]) < float(row["predicted_ms"]) < float(row["upper_ms"])


def test_what_was_never_measured_is_said_beside_the_predictions(table, capsys):
    run(capsys, "calibrate --table table.csv --profile small.toml --out folder")
    b = Builder("deep")
    b.output(b.relu(b.conv(b.input(1, 16, 8, 8), 16, window=3, groups=16)))
    onnx.save(b.model(), "deep.onnx")
    (table.parent / "ask.csv").write_text("network,precision,batch\ndeep.onnx,fp32,1\n")
    line = "predict --table ask.csv --latency-model folder/latency_model.json"
    code, out, err = run(capsys, line)
    assert code == 0, err
    assert "never measured on this board" in out and "conv_depthwise fp32" in out
    assert "of them measured" not in out
    code, out, err = run(capsys, f"{line} --json")
    (row,) = json.loads(out)
    assert row["measured_s"] is None


HEAD = "network,precision,batch,latency_ms"
CASES = [
    ("no latency", "network,precision,batch", "", "no column latency_ms"),
    ("no rows", HEAD, "", "no rows"),
    ("a missing network", f"{HEAD}\ngone.onnx,fp32,1,3", "", "gone.onnx does not exist"),
    ("an unknown precision", f"{HEAD}\nchain_8_1.onnx,fp8,1,3", "", "no precision 'fp8'"),
    ("few rows", f"{HEAD}\nchain_8_1.onnx,fp32,1,3", "", "too few rows"),
    ("a word for a time", f"{HEAD}\nchain_8_1.onnx,fp32,1,fast", "", "line 2"),
    (
        "an unknown power mode",
        f"{HEAD},power_mode\nchain_8_1.onnx,fp32,1,3,X",
        "",
        "there are SLOW",
    ),
    ("an unknown runtime", None, "--runtime abacus", "unknown runtime 'abacus'"),
    ("an unknown profile", None, "--profile abacus", "no board profile 'abacus'"),
    ("no profile", None, "--profile", "--profile"),
]


@pytest.mark.parametrize(
    ("text", "option", "fragment"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
@pytest.mark.parametrize("command", ["validate", "calibrate"])
def test_what_is_wrong_with_a_table_is_said_in_one_line(
    table, capsys, command, text, option, fragment
):
    if text is not None:
        table.write_text(text + "\n")
    options = option if option.startswith("--profile") else f"--profile small.toml {option}"
    if option == "--profile":
        options = ""
    code, out, err = run(capsys, f"{command} --table table.csv {options} --out held")
    assert code == 2, err
    assert fragment in err
    assert "Traceback" not in err and "internal error" not in err
    assert len([line for line in err.splitlines() if line.startswith("boardfit: ")]) == 1
    assert out == ""


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(
    ("line", "fragment"),
    [
        ("validate", "either NETWORKS or --table"),
        ("validate a.onnx --table table.csv", "either NETWORKS or --table"),
        ("predict --latency-model m.json", "either NETWORK or --table"),
        (
            "validate --table table.csv --profile small.toml --split 6 --leave-out family",
            "two ways",
        ),
        ("validate --table table.csv --profile small.toml --leave-out colour", "power_mode"),
        ("validate --table table.csv --profile small.toml --split 12", "and 0 predicted"),
    ],
)
def test_options_that_contradict_each_other_are_usage_errors(capsys, line, fragment):
    code, _, err = run(capsys, line)
    assert code == 2, err
    assert fragment in err
    assert "internal error" not in err


@pytest.mark.usefixtures("table")
def test_a_network_that_is_not_there_is_named(capsys):
    run(capsys, "calibrate --table table.csv --profile small.toml --out model.json")
    for line, fragment in (
        ("gone.onnx", "gone.onnx does not exist"),
        ("chain_8_1.onnx --precision int4", "has no precision 'int4', only fp32"),
        ("chain_8_1.onnx --power-mode TURBO", "there are SLOW"),
    ):
        code, _, err = run(capsys, f"predict {line} --latency-model model.json")
        assert code == 2, err
        assert fragment in err
