"""Which operators a release reads, and how a network that it does not read is told of."""

import numpy as np
import onnx
import pytest

from harness.boards.limits import onnx_limits
from harness.errors import BuildError, ConfigError
from harness.tensorrt import checks, operators, versions
from tests.tensorrt.nets import chain, facts, network, node


@pytest.mark.parametrize(
    ("version", "name"),
    [
        ("8.0.1", "8.0"),
        ("8.0.1.6", "8.0"),
        ("8.2.1", "8.2"),
        ("8.3.0", "8.2"),
        ("8.5.2", "8.5"),
        ("8.6.1", "8.6"),
        ("10.3.0", "10"),
        ("10.15.1", "10.15"),
        ("11.2.0", "11"),
        ("1.7.1.116", "RTX"),
    ],
)
def test_a_version_belongs_to_the_release_before_it(version, name):
    assert versions.release_of("tensorrt", version).name == name


@pytest.mark.parametrize("version", ["7.2.1", "5.0.6", "unknown", ""])
def test_a_version_that_boardfit_cannot_build_with_is_refused(version):
    with pytest.raises(ConfigError, match=r"older than 8\.0|no version of TensorRT"):
        versions.release_of("tensorrt", version)


@pytest.mark.parametrize("release", versions.RELEASES, ids=lambda release: release.name)
def test_opsets_agree_with_the_table_that_the_doctor_reads(release):
    known = onnx_limits("tensorrt", f"{release.since[0]}.{release.since[1]}")
    assert known is not None
    assert known.opset == release.opset


# Rows of the matrices in operators.md and lines of the changelog, read by hand.
@pytest.mark.parametrize(
    ("operator", "version", "read"),
    [
        ("Conv", "8.0.1", True),
        ("Einsum", "8.0.1", False),
        ("Einsum", "8.2.1", True),
        ("ScatterND", "8.0.1", False),
        ("ScatterND", "8.2.1", True),
        ("Round", "8.0.1", False),
        ("NonMaxSuppression", "8.0.1", True),
        ("Xor", "8.2.1", False),
        ("Xor", "8.4.1", True),
        ("RoiAlign", "8.4.1", False),
        ("RoiAlign", "8.5.2", True),
        ("LayerNormalization", "8.5.2", False),
        ("LayerNormalization", "8.6.1", True),
        ("Hardmax", "8.6.1", False),
        ("CastLike", "8.6.1", False),
        ("CastLike", "9.2.0", True),
        ("STFT", "9.2.0", False),
        ("STFT", "10.5.0", True),
        ("Gelu", "8.5.2", False),
        ("Gelu", "8.6.1", None),
        ("Gelu", "10.15.0", True),
        ("DeformConv", "10.15.0", True),
        ("DeformConv", "1.7.1", False),
        ("Swish", "1.7.1", True),
        ("QLinearConv", "10.15.0", False),
        ("DynamicQuantizeLinear", "8.6.1", False),
    ],
)
def test_an_operator_is_read_from_the_release_that_its_documents_name(operator, version, read):
    assert operators.support(operator, versions.release_of("tensorrt", version)) is read


def test_what_one_release_reads_all_later_ones_read():
    names = [schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""]
    for name in names:
        read = [operators.support(name, release) is True for release in versions.RELEASES]
        assert read == sorted(read), name


def test_an_unsupported_operator_is_told_with_node_version_and_way_out(tmp_path):
    path = tmp_path / "einsum.onnx"
    onnx.save(
        network([node("Einsum", ["x", "x"], ["y"], "attn/einsum", equation="abcd,abcd->abcd")]),
        path,
    )
    with pytest.raises(BuildError) as told:
        checks.require(path, facts("8.0.1"))
    text = str(told.value)
    assert "einsum.onnx cannot be built by TensorRT 8.0.1 on nano, and was not sent there" in text
    assert "node 'attn/einsum' (Einsum): TensorRT 8.0 does not read the operator Einsum" in text
    assert "TensorRT 8.2 reads it" in text
    assert checks.require(path, facts("8.2.1")) == ()


@pytest.mark.parametrize(
    ("version", "by"),
    [
        ("8.0.1", ""),
        ("8.2.1", " (by the matrix of 8.0 and the changelog of 8.2)"),
        ("8.5.2", ""),
        ("8.6.1", " (by the matrix of 8.5 and the changelog of 8.6)"),
        ("10.3.0", " (by the matrix of 9.2 and the changelog up to 10.6)"),
        ("11.1.0", " (by the matrix of 10.15)"),
    ],
)
def test_a_refusal_says_where_it_is_not_by_a_matrix_of_the_release_itself(version, by):
    model = network([node("Det", ["x"], ["y"])])
    (found,) = checks.findings(model, versions.release_of("tensorrt", version))
    assert found.wrong.endswith(f"does not read the operator Det{by}")


def test_an_operator_in_a_subgraph_is_found():
    def branch(name, op):
        nodes = [onnx.helper.make_node(op, ["x"], [f"{name}_out"], name=f"{name}_{op}")]
        value = onnx.helper.make_tensor_value_info(f"{name}_out", onnx.TensorProto.FLOAT, None)
        return onnx.helper.make_graph(nodes, name, [], [value])

    test = ("c", np.array(True))
    made = node("If", ["c"], ["y"], then_branch=branch("a", "Relu"), else_branch=branch("b", "Det"))
    found = checks.findings(network([made], constants=[test]), versions.release_of("", "8.6.1"))
    assert [(one.node, one.op_type) for one in found] == [("b_Det", "Det")]


def test_an_opset_above_the_release_is_a_warning_alone():
    found = checks.findings(chain(opset=17), versions.release_of("tensorrt", "8.2.1"))
    assert [one.status for one in found] == ["warning"]
    assert "opset 17" in found[0].wrong and "up to 13" in found[0].wrong
    assert checks.findings(chain(opset=17), versions.release_of("tensorrt", "8.5.2")) == ()


def test_operators_of_another_domain_are_warned_of_as_plugins():
    made = onnx.helper.make_node("DCNv2", ["x"], ["y"], name="dcn", domain="mmdeploy")
    (found,) = checks.findings(network([made]), versions.release_of("tensorrt", "8.2.1"))
    assert (found.status, found.node) == ("warning", "dcn")
    assert "plugin" in found.wrong


def test_the_indices_of_maxima_are_an_error_and_cubic_resizing_a_warning():
    release = versions.release_of("tensorrt", "8.6.1")
    pool = network([node("MaxPool", ["x"], ["y", "i"], kernel_shape=[2, 2])])
    (found,) = checks.findings(pool, release)
    assert found.status == "error" and "indices" in found.wrong
    scales = [("s", np.array([1, 1, 2, 2], np.float32))]
    cubic = network([node("Resize", ["x", "", "s"], ["y"], mode="cubic")], constants=scales)
    (found,) = checks.findings(cubic, release)
    assert found.status == "warning" and "by cubic" in found.wrong
    assert checks.findings(cubic, versions.RTX) == ()


def test_a_long_list_of_errors_is_cut_and_counted(tmp_path):
    nodes = [node("Det", ["x"], [f"y{i}"]) for i in range(9)]
    path = tmp_path / "many.onnx"
    onnx.save(network(nodes, outputs=("y0",)), path)
    with pytest.raises(BuildError, match="and 4 more"):
        checks.require(path, facts("8.6.1"))


def test_files_of_other_runtimes_are_not_looked_at(tmp_path):
    assert checks.require(tmp_path / "absent.onnx", facts(runtime="onnxruntime")) == ()


def test_a_file_that_is_no_network_is_an_error_of_the_input(tmp_path):
    path = tmp_path / "text.onnx"
    path.write_text("no network")
    with pytest.raises(ConfigError, match="not an ONNX file"):
        checks.require(path, facts())
    with pytest.raises(ConfigError, match="does not exist"):
        checks.require(tmp_path / "absent.onnx", facts())
