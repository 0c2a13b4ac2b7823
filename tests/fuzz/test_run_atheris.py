"""Where Atheris begins: its targets and seeds, which hold without Atheris."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.fuzz import properties, run_atheris

FOLDER = Path(run_atheris.__file__).parent
PROPERTIES = {
    "agent_wire": properties.agent_wire,
    "boards_toml": properties.boards_toml,
    "host_wire": properties.host_wire,
    "onnx_nodes": properties.onnx_file_nodes,
    "trtexec_log": properties.trtexec_log,
}


def test_every_target_has_a_property_and_seeds_that_hold(tmp_path: Path) -> None:
    targets = {path.stem.removeprefix("atheris_") for path in FOLDER.glob("atheris_*.py")}
    assert targets == set(PROPERTIES)
    for target in sorted(targets):
        assert f"properties.{PROPERTIES[target].__name__})" in (
            FOLDER / f"atheris_{target}.py"
        ).read_text(encoding="utf-8")
        seeds = run_atheris._seeds(target, tmp_path / target)
        assert len(set(seeds)) == len(seeds) >= 2
        for seed in seeds:
            PROPERTIES[target](seed)


def test_the_dictionary_has_the_words_of_the_wire() -> None:
    assert {'"blob_begin"', '"job_id"', "boardfit-agent "} <= set(run_atheris._words())
    assert run_atheris._quoted('"a\\b"') == '"\\"a\\\\b\\""'


def test_without_atheris_the_runner_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SystemExit) as end:
        run_atheris.main(["--seconds", "1"])
    assert end.value.code == 2
    assert "pip install atheris" in capsys.readouterr().err
