"""Bad input, one clear message and one exit code each; what the command line promises."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from harness import cli
from harness.cli import options
from latency_models import calibration, profiles
from latency_models.graph import Dims, Work
from tests.fits import TINY, write_images

ROOT = Path(__file__).parent.parent


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A tiny network and data in an empty working folder, with an empty configuration folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BOARDFIT_CONFIG_DIR", str(tmp_path / "config"))
    (tmp_path / "tiny.py").write_text(TINY)
    write_images(tmp_path / "data.npz", train=40, test=20)
    return tmp_path


def run(capsys, *arguments):
    """Exit code, stdout and stderr of one command, in this process."""
    old = sys.argv
    sys.argv = ["boardfit", *arguments]
    try:
        with pytest.raises(SystemExit) as end:
            cli.main()
    finally:
        sys.argv = old
    out, err = capsys.readouterr()
    return end.value.code, out, err


def fit_arguments(**changes):
    options = {"--data": "data.npz", "--out": "run", "--latency": "50%", **changes}
    network = options.pop("network", "tiny.py:factory")
    return ["fit", network, *(x for pair in options.items() if pair[1] is not None for x in pair)]


STUDENT = {"--methods": "distill,quantize", "--student": "tiny.py:factory"}
BAD_INPUT = [
    ("a missing network file", {"network": "gone.py:factory"}, 2, "gone.py"),
    ("a missing factory", {"network": "tiny.py:gone"}, 2, "gone"),
    ("a network that is no factory", {"network": "tiny.py:not_a_network"}, 2, "int"),
    ("a factory that raises", {"network": "tiny.py:raising"}, 2, "no such backbone"),
    ("a network without a layer", {"network": "tiny.py:nothing"}, 2, "nothing to compress"),
    ("a missing weight file", {"--weights": "gone.pt"}, 2, "gone.pt"),
    ("a corrupt weight file", {"--weights": "corrupt.pt"}, 2, "corrupt.pt"),
    ("weights of another network", {"--weights": "other.pt"}, 2, "other.pt"),
    ("missing data", {"--data": "gone.npz"}, 2, "gone.npz"),
    ("corrupt data", {"--data": "corrupt.npz"}, 2, "corrupt.npz"),
    ("data of the wrong shape", {"--data": "wide.npz"}, 2, "(2, 3, 8, 8)"),
    ("data without labels", {"--data": "unlabelled.npz"}, 2, "test_labels"),
    ("an unknown board", {"--board": "nowhere"}, 2, "nowhere"),
    ("an unknown unit", {"--latency": "20 parsecs"}, 2, "parsecs"),
    ("a negative budget", {"--latency": "-4ms"}, 2, "-4ms"),
    ("no budget", {"--latency": None}, 2, "--latency"),
    ("an unknown method", {"--methods": "magic"}, 2, "magic"),
    ("a negative drop", {"--max-drop": "-1"}, 2, "-1"),
    ("a missing strategy", {"--strategy": "gone.json"}, 2, "gone.json"),
    ("a strategy that is none", {"--strategy": "tiny.py"}, 2, "holds no strategy"),
    ("a missing latency model", {"--latency-model": "gone.json"}, 2, "gone.json does not exist"),
    ("a latency model that is none", {"--latency-model": "tiny.py"}, 2, "not a latency model"),
    ("no student to teach", {"--methods": "distill"}, 2, "--student file.py:factory"),
    ("a student nobody teaches", {"--student": "tiny.py:factory"}, 2, "add it to --methods"),
    ("a missing student", {**STUDENT, "--student": "tiny.py:gone"}, 2, "student 'tiny.py:gone'"),
    ("a student of other classes", {**STUDENT, "--student": "tiny.py:four"}, 2, "(2, 4)"),
    ("a student that is not to learn", {**STUDENT, "--epochs": "0"}, 2, "--epochs 0"),
]


@pytest.mark.parametrize(
    ("changes", "code", "fragment"),
    [row[1:] for row in BAD_INPUT],
    ids=[row[0] for row in BAD_INPUT],
)
def test_bad_input_is_named_in_one_message(files, capsys, changes, code, fragment):
    (files / "corrupt.pt").write_bytes(b"PK not really")
    (files / "corrupt.npz").write_bytes(b"PK not really")
    torch.save({"layer.weight": torch.zeros(3)}, files / "other.pt")
    with np.load(files / "data.npz") as arrays:
        known = dict(arrays)
    wide = {k: np.repeat(v, 3, axis=1) if "images" in k else v for k, v in known.items()}
    np.savez(files / "wide.npz", **wide)
    np.savez(files / "unlabelled.npz", **{k: v for k, v in known.items() if k != "test_labels"})
    got, out, err = run(capsys, *fit_arguments(**changes))
    assert got == code, err
    assert fragment in err
    assert "internal error" not in err
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if line.startswith("boardfit: ")]) == 1
    assert out == ""


def test_a_latency_model_of_another_board_is_refused_before_anything_is_written(files, capsys):
    model = calibration.prior(profiles.load("jetson-nano-cpu"), runtime="onnxruntime-1.10-cpu-arm")
    (files / "nano.json").write_text(model.to_json())
    code, out, err = run(capsys, *fit_arguments(**{"--latency-model": "nano.json"}))
    assert code == 2, err
    assert "jetson-nano-cpu with onnxruntime-1.10-cpu-arm" in " ".join(err.split())
    assert out == ""
    assert not (files / "run").exists()


@pytest.mark.parametrize(
    ("toml", "fragment"),
    [
        ('[boards.nano]\nhost = "127.0.0.1"\npyhton = "python3"', "pyhton"),
        ("[boards.nano\n", "boards.toml"),
    ],
)
def test_a_bad_inventory_names_the_file_and_the_key(files, capsys, toml, fragment):
    (files / "boards.toml").write_text(toml)
    code, _, err = run(capsys, *fit_arguments(**{"--board": "nano"}))
    assert code == 2
    assert fragment in err


def test_an_unreachable_board_exits_with_its_own_code(files, capsys):
    # Port 9 (discard) of loopback: nothing listens there.
    (files / "ssh_config").write_text("Host dead\n  HostName 127.0.0.1\n  Port 9\n")
    (files / "boards.toml").write_text('[boards.nano]\nhost = "dead"\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BOARDFIT_SSH_CONFIG", str(files / "ssh_config"))
        code, _, err = run(capsys, "boards", "show", "nano")
    assert code == 3, err
    assert "nano" in err
    assert "internal error" not in err


def test_the_doctor_exits_with_1_for_a_board_that_cannot_be_used_and_3_for_none(files, capsys):
    (files / "boards.toml").write_text(
        '[boards.nano]\nhost = "127.0.0.1:9"\n'
        "[boards.local]\n"
        'python = "no-such-python"\n'
        f'cache_dir = "{files / "cache"}"\n'
    )
    for board, code, verdict in (("nano", 3, "unreachable"), ("local", 1, "unusable")):
        got, out, _ = run(capsys, "doctor", board, "--json")
        found = json.loads(out)
        assert (got, found["verdict"], found["board"]) == (code, verdict, board)
        got, out, err = run(capsys, "doctor", board)
        assert (got, err) == (code, "")
        assert "then run the doctor again" in out


def test_the_doctor_exits_with_0_for_this_computer_and_with_2_for_an_unknown_board(files, capsys):
    (files / "boards.toml").write_text(
        f'[boards.local]\nruntime = "fake"\ncache_dir = "{files / "cache"}"\n'
    )
    got, out, _ = run(capsys, "doctor", "local")
    assert (got, "local is ready" in out) == (0, True)
    got, _, err = run(capsys, "doctor", "nowhere")
    assert (got, "nowhere" in err) == (2, True)


def test_predict_without_a_latency_model_says_how_to_get_one(files, capsys):
    (files / "net.onnx").write_bytes(b"not onnx")
    code, _, err = run(capsys, "predict", "net.onnx", "--latency-model", "gone.json")
    assert code == 2
    assert "boardfit calibrate" in err


def test_report_of_an_unfinished_folder_says_how_to_finish(files, capsys):
    code, _, err = run(capsys, "report", str(files))
    assert code == 2
    assert "result.json" in err


def test_the_boards_are_listed_as_text_and_json(files, capsys):
    (files / "boards.toml").write_text('[boards.nano]\nhost = "jetson-nano"\n')
    code, out, _ = run(capsys, "boards", "list")
    assert code == 0
    assert "nano" in out and "local" in out
    code, out, _ = run(capsys, "boards", "list", "--json")
    assert {board["name"] for board in json.loads(out)} == {"nano", "local"}


def commands():
    """Every command of the application with its help, sub-commands included."""
    for group, prefix in ((cli.app, ()), (options.boards_app, ("boards",))):
        for command in group.registered_commands:
            name = command.name or command.callback.__name__
            yield (*prefix, name), command.callback


@pytest.mark.parametrize(
    ("words", "callback"),
    [pytest.param(*found, id=" ".join(found[0])) for found in commands()],
)
def test_every_command_has_help_and_stands_in_the_readme(words, callback):
    assert callback.__doc__
    readme = (ROOT / "README.md").read_text()
    assert re.search(rf"boardfit {' '.join(words)}\b", readme), words


def test_the_help_is_quick_because_nothing_heavy_is_imported():
    code = "import sys, harness.cli; print(sorted(sys.modules))"
    listed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    loaded = {name.split(".")[0] for name in ast.literal_eval(listed)}
    assert not loaded & {"torch", "numpy", "onnx", "onnxruntime", "pandas", "plotly", "paramiko"}


def test_an_operator_that_the_latency_model_does_not_know_is_named(files, capsys):
    node = onnx.helper.make_node("Einsum", ["x"], ["y"], name="mix", equation="nchw->nc")
    tensors = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("x", (1, 3, 8, 8)), ("y", (1, 3)))
    ]
    graph = onnx.helper.make_graph([node], "g", tensors[:1], tensors[1:])
    onnx.save(onnx.helper.make_model(graph), files / "odd.onnx")
    model = calibration.fit(
        [
            (
                Work(
                    kind="conv_3x3",
                    macs=10**6,
                    bytes_in=10**4,
                    bytes_out=10**4,
                    bytes_weights=10**4,
                    shape=Dims(rows=100, outputs=16, inputs=16, window=9),
                    precision="fp32",
                    name="c",
                ),
                1e-4,
            )
        ],
        [],
        profile=profiles.load("generic-cpu"),
    )
    (files / "model.json").write_text(model.to_json())
    code, _, err = run(capsys, "predict", "odd.onnx", "--latency-model", "model.json")
    assert code == 1
    assert "Einsum" in err and "mix" in err
    assert "internal error" not in err


RAISED_IN_GENERATED_CODE = "exec('raise KeyboardInterrupt')"
# As a class body does: the exception that leaves it is a RuntimeError.
TURNED_INTO_ANOTHER = """
    class Field:
        def __set_name__(self, owner, name):
            signal.raise_signal(signal.SIGINT)
    try:
        type("Owner", (), {"field": Field()})
    except BaseException as error:
        raise RuntimeError("a library's own") from error
"""


@pytest.mark.parametrize("what", [RAISED_IN_GENERATED_CODE, TURNED_INTO_ANOTHER])
def test_ctrl_c_inside_a_library_exits_with_130_and_neither_by_the_signal_nor_as_a_bug(
    tmp_path, what
):
    (tmp_path / "interrupted.py").write_text(
        "import signal\n"
        "from harness import cli\n"
        f"def app(**options):\n    {what}\n"
        "cli.app = app\n"
        "cli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "interrupted"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 130, done.stderr
    assert "the same command resumes" in done.stderr
