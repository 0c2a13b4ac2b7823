from __future__ import annotations

import sys
from pathlib import Path

import pytest

from harness.boards import inventory
from harness.errors import ConfigError
from harness.records import BoardSpec


def _write(folder: Path, text: str) -> None:
    (folder / "boards.toml").write_text(text)


def test_local_is_always_there() -> None:
    assert inventory.load() == (BoardSpec(name="local", python=sys.executable),)


def test_working_folder_hides_the_users_board_of_the_same_name(own_settings: Path) -> None:
    _write(own_settings, '[boards.nano]\nhost = "a"\n[boards.pi]\nhost = "pi"\nthreads = 4\n')
    _write(Path(), '[boards.nano]\nhost = "b"\n')
    assert [spec.name for spec in inventory.load()] == ["local", "nano", "pi"]
    assert inventory.find("nano") == BoardSpec(name="nano", host="b")
    assert inventory.find("pi").threads == 4


def test_local_can_be_given_threads_and_keeps_this_python() -> None:
    _write(Path(), "[boards.local]\nthreads = 2\n")
    assert inventory.find("local") == BoardSpec(name="local", python=sys.executable, threads=2)


def test_user_folder_follows_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BOARDFIT_CONFIG_DIR")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert inventory.config_dir() == tmp_path / "boardfit"


def test_unknown_name_lists_the_known_ones() -> None:
    _write(Path(), '[boards.nano]\nhost = "a"\n')
    with pytest.raises(ConfigError, match="'nona'; known are local, nano"):
        inventory.find("nona")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[boards.nano", r"boards\.toml cannot be read"),
        ("[board.nano]\n", "only tables .* not board"),
        ("boards = 3\n", "only tables"),
        ("[boards]\nnano = 1\n", "must be a table"),
        ('[boards.nano]\nhots = "x"\n', "unknown key hots; known are host,"),
        ('[boards.nano]\nhost = "x"\nthreads = "two"\n', r"threads: .* got 'two'"),
        ('[boards.nano]\nhost = "x"\nthreads = 0\n', "threads must be positive"),
        ('[boards.nano]\nprofile = "nano"\n', "needs host"),
        ('[boards.local]\nhost = "x"\n', "give the board another name"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_key(text: str, message: str) -> None:
    _write(Path(), text)
    with pytest.raises(ConfigError, match=message) as caught:
        inventory.load()
    assert "boards.toml" in str(caught.value)
