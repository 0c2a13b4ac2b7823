"""What a session sends for a network: the file as it is, or made ready for TensorRT."""

import onnx
import pytest

from harness.boards import bindings
from harness.boards.engines import Engines
from harness.boards.plans import EngineRequest
from harness.errors import BuildError, ConfigError, StableBoardError
from harness.records import BoardSpec, BuildSettings, LayerPrecision
from tests.tensorrt.nets import chain, facts, network, node


@pytest.fixture
def path(tmp_path):
    onnx.save(chain(), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


@pytest.fixture
def make():
    made = []

    def engines(**changes):
        made.append(Engines(facts(**changes)))
        return made[-1]

    yield engines
    for one in made:
        one.close()


def request(path, precision="fp32", **more):
    return EngineRequest(label="n", path=path, precision=precision, **more)


def test_other_runtimes_get_the_file_as_it_is(make, tmp_path):
    absent = request(tmp_path / "absent.onnx")
    assert make(runtime="onnxruntime").of(absent).path == absent.path


def test_weak_typing_sends_the_file_itself_with_flags(make, path):
    sent = make().of(request(path, "fp16"))
    assert sent.path == path
    assert sent.build == BuildSettings(flags=("tf32", "fp16"))
    assert make().of(request(path)).build == BuildSettings(flags=("tf32",))


def test_strong_typing_sends_a_typed_file_and_keeps_the_given_one(make, path):
    before = path.read_bytes()
    engines = make(version="1.7.1", compute="8.9", runtime="tensorrt_rtx")
    sent = engines.of(request(path, "fp16"))
    assert sent.path != path and sent.build.strongly_typed
    assert any(n.op_type == "Cast" for n in onnx.load(sent.path).graph.node)
    assert path.read_bytes() == before
    engines.close()
    assert not sent.path.exists()


def test_what_was_measured_is_profiled_as_the_same_engine(make, path):
    engines = make()
    measured = engines.of(request(path, "fp16"))
    assert engines.again(path, None) == measured
    other = BuildSettings(flags=("fp16",), rebuild=2)
    assert engines.again(path, other).build == other


def test_a_file_that_was_written_anew_is_looked_at_again(make, path):
    engines = make()
    engines.of(request(path, "fp16"))
    onnx.save(network([node("Det", ["x"], ["y"], "det")], shape=(1, 4)), path)
    with pytest.raises(BuildError, match="'det'"):
        engines.again(path, None)


def test_single_layers_are_bound_to_their_precision(make, path):
    layers = (
        LayerPrecision(node="conv1", precision="fp16"),
        LayerPrecision(node="conv2", precision="fp16"),
    )
    sent = make().of(request(path, "mixed", layers=layers))
    bound = {one.node: one.precision for one in sent.build.layers}
    assert (bound["conv1"], bound["add"], bound["fc"]) == ("fp16", "fp16", "fp32")


def test_a_network_that_cannot_be_built_is_refused_with_or_without_settings(make, path):
    onnx.save(network([node("Det", ["x"], ["y"], "det")], shape=(1, 4)), path)
    for build in (None, BuildSettings(flags=("fp16",))):
        with pytest.raises(BuildError, match="was not sent there"):
            make().of(request(path, build=build))


def test_every_runtime_of_the_agent_and_trtexec_are_known_and_others_told():
    for runtime in ("onnxruntime", "tensorrt", "tensorrt_rtx", "trtexec"):
        bindings.check_runtime(BoardSpec(name="nano", host="nano", runtime=runtime))
    with pytest.raises(ConfigError, match="'tensorflow' is none of onnxruntime, "):
        bindings.check_runtime(BoardSpec(name="nano", host="nano", runtime="tensorflow"))


PROBED = {"hostname": "nano", "runtime": "fake", "runtime_version": "1", "providers": ["fake"]}


def asked(tool, gpus):
    answers = {"tensorrt": {"trtexec": tool}, "system": {"gpus": gpus}}

    def ask(method, params):
        return dict(PROBED) if method == "probe" else {"facts": answers[params["section"]]}

    return ask


def test_a_board_with_trtexec_alone_is_known_by_its_version_and_chip():
    spec = BoardSpec(name="nano", host="nano", runtime="trtexec")
    tool = {"path": "/usr/src/tensorrt/bin/trtexec", "version": "8.2.1"}
    gpu = {"name": "Tegra X1", "compute": "5.3", "driver": None}
    found = bindings.probe(asked(tool, [gpu]), spec)
    assert (found["runtime"], found["runtime_version"]) == ("trtexec", "8.2.1")
    assert found["gpu"]["compute"] == "5.3" and found["gpu"]["free_bytes"] is None
    assert found["providers"] == [] and found["hostname"] == "nano"
    assert bindings.probe(asked(tool, []), spec)["gpu"] is None


@pytest.mark.parametrize(
    ("tool", "words"),
    [(None, "there is no trtexec"), ({"path": "/t", "version": None}, "/t tells no version")],
)
def test_a_board_without_a_trtexec_that_tells_its_version_is_an_error(tool, words):
    spec = BoardSpec(name="nano", host="nano", runtime="trtexec")
    with pytest.raises(StableBoardError, match=words):
        bindings.probe(asked(tool, []), spec)
