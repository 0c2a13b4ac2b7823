from __future__ import annotations

import io
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from harness.boards.deploy import launch, pack
from harness.boards.transport import LocalTransport, quote
from harness.errors import ProtocolError, StableBoardError
from harness.records import BoardSpec


def test_package_holds_source_only_and_is_the_same_every_time() -> None:
    first = pack()
    pack.cache_clear()
    assert pack() == first
    with tarfile.open(fileobj=io.BytesIO(first.tar)) as tar:
        names = tar.getnames()
        assert {entry.mtime for entry in tar.getmembers()} == {0}
    assert "device_agent/__main__.py" in names
    assert "device_agent/wire_v1.json" in names
    assert all(name.endswith((".py", ".json")) for name in names)


def test_agent_is_unpacked_once_and_then_found(local: BoardSpec) -> None:
    assert local.cache_dir is not None
    for _ in range(2):
        deployed = launch(LocalTransport(), local)
        deployed.connection.close()
        assert deployed.agent_hash == pack().sha256
        assert deployed.cache_dir == local.cache_dir
    (agent,) = Path(local.cache_dir, "agents").iterdir()
    assert agent.name == pack().sha256


def test_changed_agent_in_the_cache_is_refused(local: BoardSpec) -> None:
    launch(LocalTransport(), local).connection.close()
    assert local.cache_dir is not None
    module = next(Path(local.cache_dir, "agents").glob("*/device_agent/timing.py"))
    module.write_text(module.read_text() + "\n# edited\n")
    with pytest.raises(StableBoardError, match="delete that folder"):
        launch(LocalTransport(), local)


def test_start_up_noise_is_skipped(
    local: BoardSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nos.write(1, b'Welcome to Ubuntu\\nLast login: never')"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    launch(LocalTransport(), local).connection.close()


def test_python_that_is_too_old_is_named_with_its_version(
    local: BoardSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.version_info = (3, 5, 2)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(StableBoardError, match=r"is Python 3\.5, but the agent needs 3\.6"):
        launch(LocalTransport(), local)


def test_a_real_python_27_is_told_from_a_broken_one(local: BoardSpec) -> None:
    found = sorted(Path.home().glob(".pyenv/versions/2.7*/bin/python"))
    if not found:
        pytest.skip("no Python 2.7 under ~/.pyenv: pyenv install 2.7.18")
    with pytest.raises(StableBoardError, match=r"is Python 2\.7"):
        launch(LocalTransport(), replace(local, python=str(found[0])))


def test_missing_python_says_which_key_to_set(local: BoardSpec) -> None:
    with pytest.raises(StableBoardError, match=r"no-such-python cannot be run.*boards\.toml"):
        launch(LocalTransport(), replace(local, python="no-such-python"))


def test_cache_folder_that_cannot_be_written_is_named(local: BoardSpec, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    where = str(tmp_path / "file" / "cache")
    with pytest.raises(StableBoardError, match=r"cannot keep the agent in .*file/cache"):
        launch(LocalTransport(), replace(local, cache_dir=where))


def test_agent_that_fails_at_start_is_told_with_its_traceback(
    local: BoardSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "select.py").write_text("raise RuntimeError('no select here')")
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nsys.modules.pop('select', None)"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(StableBoardError, match="no select here"):
        launch(LocalTransport(), local)


def test_program_that_talks_without_end_is_no_agent(local: BoardSpec, tmp_path: Path) -> None:
    script = tmp_path / "chatty"
    script.write_text("#!/bin/sh\nexec yes\n")
    script.chmod(0o755)
    with pytest.raises(ProtocolError, match="login script"):
        launch(LocalTransport(), replace(local, python=str(script)))


def test_commands_are_quoted_for_a_shell() -> None:
    command = quote([sys.executable, "-c", "print('$HOME; x')"], {"A": "b c"})
    assert command == f"""exec env -- 'A=b c' {sys.executable} -c 'print('"'"'$HOME; x'"'"')'"""
