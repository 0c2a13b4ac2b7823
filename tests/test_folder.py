import pytest

from harness.errors import ConfigError
from harness.folder import Folder
from harness.records import Interval


class Watcher:
    def __init__(self):
        self.seen = []

    def begin(self, stage, *, resumed):
        self.seen.append((stage, resumed))

    def progress(self, done, total):
        pass

    def end(self, stage):
        pass

    def warn(self, text):
        self.seen.append(("warn", text))


def test_a_finished_stage_is_not_computed_again(tmp_path):
    watcher = Watcher()
    calls = []

    def compute():
        calls.append(1)
        return Interval(1.0, 2.0, 0.9)

    first = Folder(tmp_path / "run", {"a": 1}, watcher).stage("one", Interval, compute)
    again = Folder(tmp_path / "run", {"a": 1}, watcher)
    assert again.stage("one", Interval, compute) == first
    assert calls == [1]
    assert watcher.seen == [("one", False), ("one", True)]


def test_the_wall_time_of_the_run_that_did_the_work_survives(tmp_path):
    folder = Folder(tmp_path / "run", {}, Watcher())
    folder.stage("one", str, lambda: "x", detail=lambda v: f"did {v}")
    again = Folder(tmp_path / "run", {}, Watcher())
    again.stage("one", str, lambda: "y")
    assert again.stages == folder.stages
    assert again.stages[0].detail == "did x"


def test_an_interrupted_stage_leaves_nothing_behind(tmp_path):
    folder = Folder(tmp_path / "run", {}, Watcher())

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.stage("one", str, interrupted)
    assert Folder(tmp_path / "run", {}, Watcher()).stage("one", str, lambda: "done") == "done"


def test_a_damaged_stage_is_computed_anew_and_said_so(tmp_path):
    watcher = Watcher()
    Folder(tmp_path / "run", {}, watcher).stage("one", str, lambda: "x")
    (tmp_path / "run" / "state" / "one.json").write_text('{"stage": ')
    assert Folder(tmp_path / "run", {}, watcher).stage("one", str, lambda: "y") == "y"
    assert watcher.seen[-2][0] == "warn"
    assert "one" in watcher.seen[-2][1]


def test_a_folder_with_other_settings_is_refused_and_names_them(tmp_path):
    Folder(tmp_path / "run", {"latency": "22%"}, Watcher())
    with pytest.raises(ConfigError, match="latency: '22%' is now '30%'"):
        Folder(tmp_path / "run", {"latency": "30%"}, Watcher())


def test_a_folder_from_when_rounds_were_a_setting_resumes(tmp_path):
    Folder(tmp_path / "run", {"seed": 0, "max_rounds": 3}, Watcher())
    Folder(tmp_path / "run", {"seed": 0}, Watcher())
    assert "max_rounds" not in (tmp_path / "run" / "settings.json").read_text()


def test_a_folder_with_something_else_in_it_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match="not empty"):
        Folder(tmp_path, {}, Watcher())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
