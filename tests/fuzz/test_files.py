"""Files that users and earlier runs wrote, holding anything: one error that names the file."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from harness import commands, units
from harness.boards import inventory
from harness.errors import ConfigError, LatencyModelError, latency_errors
from harness.folder import Folder
from harness.records import FitResult, Measurement, Profile, Strategy, load
from latency_models import profiles, tables, validation
from latency_models.errors import FormatError
from tests.fuzz import properties
from tests.fuzz.support import NAMES, NUMBERS, deep, fuzzed, line, mutated, scalars, values
from tests.fuzz.test_networks import MODELS, originals
from tests.test_cli import run

ROOT = Path(__file__).resolve().parents[2]


def toml(value: Any) -> str:
    """A value as TOML writes it, as far as TOML can."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps("" if value is None else value, ensure_ascii=False)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)


def document(tables_of: Any) -> bytes:
    """A TOML document of a dictionary, with halves of characters as bytes that are no UTF-8."""
    text = "".join(f"{_key(k)} = {toml(v)}\n" for k, v in tables_of.items())
    return text.encode("utf-8", "surrogatepass")


# --- boards.toml --------------------------------------------------------------------------------

BOARD = {
    "host": "jetson-nano",
    "profile": "jetson-nano",
    "python": "python3",
    "runtime": "onnxruntime",
    "threads": 4,
    "cache_dir": "~/cache",
    "cache_bytes": 1000,
    "job_timeout_s": 9.5,
    "power_mode": "MAXN",
    "lock_clocks": True,
}
BOARDS = {"boards": {"nano": BOARD, "local": {"threads": 2}}}


@fuzzed(150)
@given(st.one_of(mutated(BOARDS).filter(lambda d: isinstance(d, dict)).map(document), st.binary()))
@example(b"x = " + deep(20_000))
@example(b"[boards.nano]\nhost = 'x'\nthreads = " + b"9" * 5000)
@example(b"[boards.nano]\nhost = 'x'\ncache_bytes = " + b"9" * 400)
@example(b"[boards.nano]\nhost = 'x'\njob_timeout_s = nan")
@example(b"[boards.nano]\nhost = 1979-05-27T07:32:00Z")
@example(b"boards = [[1]]")
def test_an_inventory_is_read_or_a_config_error_names_its_file(data: bytes) -> None:
    properties.boards_toml(data)


@pytest.mark.parametrize("key", sorted(BOARD))
def test_a_wrong_value_in_the_inventory_is_named_with_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("BOARDFIT_CONFIG_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for wrong in ([1], {"a": 1}):
        text = document({"boards": {"nano": {**BOARD, key: wrong}}})
        (tmp_path / "boards.toml").write_bytes(text)
        with pytest.raises(ConfigError, match=rf"boards\.toml: \[boards\.nano\] {key}"):
            inventory.find("nano")


@fuzzed(40)
@given(st.sampled_from(NAMES))
def test_a_name_that_is_no_name_is_refused_or_kept_as_it_is(name: str) -> None:
    if "\ud800" in name:
        return
    properties.boards_toml(document({"boards": {name: BOARD}}))
    properties.boards_toml(document({"boards": {"nano": {**BOARD, "host": name}}}))


# --- latency models, profiles, results, tables ----------------------------------------------------

MODEL = json.loads(MODELS["tensorrt"].to_json())


def _use(path: Path) -> None:
    """Load the latency model and predict with it, as ``boardfit predict`` does."""
    with latency_errors():
        model = commands.load_model(path)
        network = properties._home() / "right.onnx"
        if not network.exists():
            network.write_bytes(originals()[0].SerializeToString())
        works = tables.works_of_row(network, runtime=model.runtime)
        model = model.at(model.profile.scales(None))
        tables.check_precision("fp32", model)
        model.predict(works)
        model.interval(works, 0.9)
        model.parts(works)


@fuzzed(150)
@given(st.one_of(mutated(MODEL).map(line), st.binary(max_size=60)))
@example(b"")
@example(deep())
@example(line({**MODEL, "schema_version": []}))
@example(line({**MODEL, "schema_version": True}))
@example(line({**MODEL, "profile": 7}))
@example(line({**MODEL, "works": [[[], "x", None, 1, 1, [1, 1], "fp32", 3]]}))
@example(line({**MODEL, "parameters_": [{**MODEL["parameters_"][0], "value": "x"}]}))
@example(line({**MODEL, "anchor_": float("nan")}))
def test_a_latency_model_predicts_or_a_config_error_names_its_file(data: bytes) -> None:
    path = properties._home() / "model.json"
    path.write_bytes(data)
    try:
        _use(path)
    except ConfigError as error:
        assert "model.json" in str(error), error


def test_the_latency_model_that_is_mutated_is_right() -> None:
    path = properties._home() / "model.json"
    path.write_bytes(line(MODEL))
    _use(path)


def _profile_table() -> dict[str, Any]:
    text = (ROOT / "data" / "boards" / "jetson-nano.toml").read_text(encoding="utf-8")
    table: dict[str, Any] = inventory.tomllib.loads(text)
    return table


@fuzzed(80)
@given(
    st.one_of(
        mutated(_profile_table()).filter(lambda d: isinstance(d, dict)).map(document), st.binary()
    )
)
@example(b"x = " + deep(20_000))
@example(document({**_profile_table(), "precisions": [[1]]}))
@example(document({**_profile_table(), "power_modes": 3}))
def test_a_profile_is_read_or_a_config_error_names_its_file(data: bytes) -> None:
    path = properties._home() / "board.toml"
    path.write_bytes(data)
    try:
        with latency_errors():
            found = profiles.load(str(path))
            found.facts()
            for mode in found.power_modes:
                found.scales(mode)
    except ConfigError as error:
        assert "board.toml" in str(error), error


CELLS = st.one_of(st.sampled_from(NAMES), scalars().map(str), st.text(max_size=6))
ROW = ("right.onnx", "fp32", "1", "2.5", "MAXN", "tensorrt", "residual")
HEADER = "network,precision,batch,latency_ms,power_mode,runtime,family"


@fuzzed(100)
@given(
    st.one_of(
        st.binary(max_size=80),
        st.lists(st.tuples(st.integers(0, len(ROW) - 1), CELLS), min_size=0, max_size=3).map(
            lambda changes: table(changes)
        ),
    )
)
@example(b"network,precision,batch,latency_ms\n" + b'"' * 200_000)
@example(b"network,precision,batch,latency_ms\nx\0y,fp32,1,1\n")
@example(b"network,precision,batch,latency_ms\nx,fp32," + b"9" * 5000 + b",1\n")
@example(b"network,precision,batch,latency_ms\n" + b"a" * 5000 + b",fp32,1,1\n")
def test_a_measurement_table_is_read_or_a_config_error_names_it(data: bytes) -> None:
    path = properties._home() / "table.csv"
    path.write_bytes(data)
    (properties._home() / "right.onnx").write_bytes(originals()[0].SerializeToString())
    board = profiles.load("jetson-nano")
    try:
        with latency_errors():
            validation.read_table(path, measured=False)
            tables.items(path, profile=board, runtime="tensorrt", progress=lambda *_: None)
    except (ConfigError, LatencyModelError) as error:
        assert "table.csv" in str(error) or "power mode" in str(error), error


def table(changes: list[tuple[int, str]]) -> bytes:
    """A table whose one row has some of its cells changed."""
    row = list(ROW)
    for column, text in changes:
        row[column] = text
    return f"{HEADER}\n{','.join(row)}\n".encode("utf-8", "surrogatepass")


@fuzzed(60)
@given(st.sampled_from((FitResult, Strategy, Measurement, Profile)), values().map(line))
@example(FitResult, deep())
@example(Strategy, b"\xff")
def test_a_record_is_loaded_or_a_value_error(kind: type[Any], data: bytes) -> None:
    try:
        load(kind, data)
    except ValueError:
        return
    raise AssertionError(f"{data!r} is no {kind}")


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xfe", deep(), b"[]", b'{"schema_version": 1}', b"NaN"]
)
def test_a_damaged_result_folder_is_told_in_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes
) -> None:
    (tmp_path / "result.json").write_bytes(data)
    code, out, err = run(capsys, "report", str(tmp_path))
    assert (code, out) == (2, "")
    assert "result.json is damaged" in err and "internal error" not in err


class Quiet:
    """An observer that keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def begin(self, stage: str, *, resumed: bool) -> None: ...

    def progress(self, done: int, total: int, *, left_s: float | None = None) -> None: ...

    def end(self, stage: object) -> None: ...

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", deep(), b"[]", b"3", b'"x"', b'{"value": 3}'])
def test_damaged_settings_and_stages_of_a_fit_are_told(tmp_path: Path, data: bytes) -> None:
    observer = Quiet()
    folder = Folder(tmp_path / "run", {"a": 1}, observer)
    assert folder.stage("one", str, lambda: "made") == "made"
    (tmp_path / "run" / "state" / "one.json").write_bytes(data)
    assert folder.stage("one", str, lambda: "made again") == "made again"
    assert "one.json is damaged" in observer.warnings[0]
    (tmp_path / "run" / "settings.json").write_bytes(data)
    with pytest.raises(ConfigError, match=r"settings\.json is damaged|other settings"):
        Folder(tmp_path / "run", {"a": 1}, observer)


# --- what is typed -------------------------------------------------------------------------------


@fuzzed(100)
@given(st.one_of(st.text(), st.from_regex(r"\s*[+-]?[0-9.eE+-]{1,9}\s*\w{0,3}%?", fullmatch=True)))
@example("1e999ms")
@example("1e-400ms")
@example("9" * 5000 + "ms")
@example("٣ms")
def test_a_budget_is_a_number_with_a_unit_or_a_config_error(text: str) -> None:
    for parse in (units.parse_latency, units.parse_size):
        try:
            assert parse(text).limit > 0
        except ConfigError as error:
            assert repr(text)[:50] in str(error)


def test_numbers_that_are_none_are_no_accuracy() -> None:
    for number in NUMBERS:
        try:
            assert 0 <= units.parse_accuracy_drop(number).limit <= 100
        except ConfigError:
            continue


@pytest.mark.parametrize(
    "name", [name for name in NAMES if "\0" not in name and "\ud800" not in name]
)
def test_a_hostile_name_on_the_command_line_is_a_name(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BOARDFIT_CONFIG_DIR", str(tmp_path / "config"))
    (tmp_path / "model.json").write_bytes(line(MODEL))
    for arguments in (
        ("predict", "--latency-model", "model.json", "--", name),
        ("predict", "--latency-model", "model.json", "x" * 300 + ".onnx"),
        ("profile", "--board", "local", "x" * 300 + ".onnx"),
        ("report", "x" * 5000),
        ("predict", "--latency-model", f"./{name}.json", "x.onnx"),
        ("profile", "--board", "local", "--", f"{name}.onnx"),
        ("report", "--", name or "gone"),
        ("boards", "show", "--", name),
        ("fit", f"./{name}.py:factory", "--data", "gone.npz", "--out", "o", "--size", "50%"),
        ("validate", "--table", f"./{name}.csv", "--profile", name),
        ("fit", "x.py:f", "--data", "gone.npz", "--out", "o", f"--latency={name}"),
    ):
        code, out, err = run(capsys, *arguments)
        assert code in (1, 2), (arguments, err)
        assert out == "" and "internal error" not in err and "Traceback" not in err, err
    assert not (tmp_path / "canary").exists()


def test_the_mutations_leave_the_originals_alone() -> None:
    before = copy.deepcopy(MODEL)

    @fuzzed(10)
    @given(mutated(MODEL))
    def mutate(_: object) -> None: ...

    mutate()
    assert before == MODEL
    with pytest.raises(FormatError):
        profiles.parse("", where="nothing")
