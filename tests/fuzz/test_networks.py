"""ONNX files that are wrong in any way: one message that names the file, and no terabyte."""

from __future__ import annotations

import itertools
import json
import resource
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from device_agent import onnx_nodes
from harness import commands
from harness.errors import ConfigError
from latency_models import calibration, profiles, tables
from latency_models.errors import LatencyError
from latency_models.graph import Dims, Work
from tests.fuzz import properties
from tests.fuzz.onnx_mutations import originals, wrong
from tests.fuzz.support import damaged, fuzzed
from tests.test_cli import run

# Reading a network takes little; what asks for more than this on top has been led to.
MORE_MEMORY_BYTES = 6 << 30
SEEDS = st.integers(0, 1_000_000)
# Found by fuzzing, each of them once an error of another kind: a constant of 4 TiB, no opset, a
# scalar of 32 numbers, groups as a list, a node twice, -2**63 groups, sizes that overflow.
FOUND = (72, 48, 57, 6, 17, 67, 103, 158, 135, 241, 251, 331, 535, 1402)


@pytest.fixture(scope="module", autouse=True)
def bounded_memory() -> Iterator[None]:
    """A bomb ends in a MemoryError here, not in the death of whatever else runs."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    old = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MORE_MEMORY_BYTES, old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, old)


def _model(runtime: str) -> calibration.LatencyModel:
    work = Work(
        kind="conv_3x3",
        macs=10**6,
        bytes_in=10**4,
        bytes_out=10**4,
        bytes_weights=10**4,
        shape=Dims(rows=100, outputs=16, inputs=16, window=9),
        precision="fp32",
        name="c",
    )
    board = {"tensorrt": "jetson-nano"}.get(runtime, "generic-cpu")
    return calibration.fit([(work, 1e-4)], [], profile=profiles.load(board), runtime=runtime)


MODELS = {runtime: _model(runtime) for runtime in ("onnxruntime-cpu", "tensorrt")}


def _cost(path: Path) -> int:
    """How many runtimes could tell what the network costs; the others said why not."""
    known = 0
    for runtime, model in MODELS.items():
        try:
            works = tables.works_of_row(path, runtime=runtime)
        except LatencyError as error:
            assert str(error)
            continue
        assert model.predict(works) > 0
        low, high = model.interval(works, 0.9)
        assert 0 < low <= high
        model.parts(works)
        known += 1
    return known


def test_networks_that_are_right_are_understood(tmp_path: Path) -> None:
    path = tmp_path / "right.onnx"
    for network in originals():
        onnx.save(network, str(path))
        assert _cost(path) == len(MODELS)
        nodes, initialisers = onnx_nodes.read_nodes(str(path))
        assert [node.name for node in nodes] == [node.name for node in network.graph.node]
        assert initialisers == {tensor.name for tensor in network.graph.initializer}


def test_a_wrong_network_costs_something_or_says_why_not(tmp_path: Path) -> None:
    path = tmp_path / "wrong.onnx"
    understood = 0

    @fuzzed(120)
    @given(SEEDS)
    def read(seed: int) -> None:
        nonlocal understood
        path.write_bytes(wrong(seed))
        understood += _cost(path)

    for seed in FOUND:
        read = example(seed)(read)
    read()
    assert understood >= 10, understood  # or nothing but the first check was tested


@fuzzed(100)
@given(st.one_of(SEEDS.map(wrong), st.binary(max_size=100)))
@example(b"\x3a\x05\x0a")  # a graph that is cut off
@example(b"\xff" * 1_000_000)  # a number without end
@example(b"\x3a" + b"\xff" * 9 + b"\x01")  # a graph of 2**63 bytes
def test_the_agents_reader_names_the_nodes_or_says_that_it_is_no_onnx_file(data: bytes) -> None:
    properties.onnx_file_nodes(data)


def test_paths_through_a_tangled_network_are_not_walked_one_by_one() -> None:
    # 60 nodes that read all of the layer before, 5 layers deep: 60^5 paths, 300 nodes.
    layers = [[f"t{layer}_{index}" for index in range(60)] for layer in range(6)]
    nodes = [
        onnx_nodes.Node(name, "Add", before, [name])
        for before, layer in itertools.pairwise(layers)
        for name in layer
    ]
    kernel = onnx_nodes.Node("fused", "FusedConv", [], ["t5_0"])
    assert onnx_nodes.Origin(nodes, set()).of(kernel) == "t5_0"


def test_layout_kernels_that_feed_each_other_in_a_circle_serve_nobody() -> None:
    kernels = [
        onnx_nodes.Node("", "ReorderInput", ["b"], ["a"]),
        onnx_nodes.Node("", "ReorderOutput", ["a"], ["b"]),
    ]
    origin = onnx_nodes.Origin([], set(), kernels)
    assert [origin.serves(kernel) for kernel in kernels] == ["", ""]


@fuzzed(40)
@given(SEEDS, st.booleans())
def test_a_damaged_file_is_a_network_or_a_config_error_with_its_name(seed: int, cut: bool) -> None:
    path = properties._home() / "damaged.onnx"
    whole = originals()[seed % 3].SerializeToString()
    path.write_bytes(whole[: seed % len(whole)] if cut else damaged(whole, seed))
    try:
        commands._read(path)
    except ConfigError as error:
        assert str(path) in str(error)


def _profile_names_it(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """What the runtime on the board refuses is told with the name of the file here."""
    cache = json.dumps(str(folder / "cache"))
    Path("boards.toml").write_text(f"[boards.local]\ncache_dir = {cache}\n")
    for seed in (2, 67):  # damaged bytes, and a node that is twice there
        Path("wrong.onnx").write_bytes(wrong(seed))
        short = ("--duration", "0", "--iterations", "1", "--warm-up", "0")
        code, out, err = run(capsys, "profile", "wrong.onnx", *short)
        assert (code, out) == (1, "")
        assert "boardfit: wrong.onnx: on the board: " in err
        assert "internal error" not in err and "Traceback" not in err


def test_commands_name_a_wrong_file_in_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.json").write_text(MODELS["onnxruntime-cpu"].to_json())

    @fuzzed(25)
    @given(SEEDS)
    def predict(seed: int) -> None:
        Path("wrong.onnx").write_bytes(wrong(seed))
        code, out, err = run(capsys, "predict", "wrong.onnx", "--latency-model", "model.json")
        if code == 0:
            assert out
            return
        assert code in (1, 2), err
        assert err.startswith("boardfit: ") and err.count("boardfit: ") == 1
        assert "wrong.onnx" in err
        assert "internal error" not in err and "Traceback" not in err

    predict()
    _profile_names_it(capsys, tmp_path)
    for content in (b"", b"\0", b"text\n", b"PK\x03\x04"):
        Path("wrong.onnx").write_bytes(content)
        code, _, err = run(capsys, "predict", "wrong.onnx", "--latency-model", "model.json")
        assert code == 2 and "wrong.onnx" in err
