"""What TensorRT-RTX's own parser and builder say of what is written for it; no GPU is needed."""

import json
import subprocess

import numpy as np
import onnx

from harness.tensorrt import operators, storage, typed, versions
from tests.tensorrt import rtx
from tests.tensorrt.nets import chain, network, node
from tests.tensorrt.test_placement import quantized

_ASK = """
import json, sys
import tensorrt_rtx as trt
logger = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(logger)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parser = trt.OnnxParser(network, logger)
print(json.dumps({name: parser.supports_operator(name) for name in sys.argv[1:]}))
"""


def test_the_table_of_operators_is_what_the_parser_says(rtx_python):
    names = sorted({s.name for s in onnx.defs.get_all_schemas() if s.domain == ""})
    done = subprocess.run(
        [rtx_python, "-c", _ASK, *names], capture_output=True, text=True, check=True
    )
    said = json.loads(done.stdout.splitlines()[-1])
    assert said == {name: operators.support(name, versions.RTX) for name in names}


def build(rtx_python, folder, **models):
    paths = []
    for name, model in models.items():
        paths.append(folder / f"{name}.onnx")
        onnx.save(model, paths[-1])
    return dict(zip(models, rtx.build_all(rtx_python, paths), strict=True))


def test_cubic_resizing_is_built_whatever_the_documents_say(rtx_python, tmp_path):
    cubic = network(
        [node("Resize", ["x", "", "s"], ["y"], "up", mode="cubic")],
        constants=[("s", np.array([1, 1, 2, 2], np.float32))],
        shape=(1, 4, 12, 12),
    )
    assert build(rtx_python, tmp_path, cubic=cubic)["cubic"]["built"]


def test_every_form_of_a_network_is_parsed_and_built(rtx_python, tmp_path):
    model, new = chain(), quantized(chain(opset=19))
    found = build(
        rtx_python,
        tmp_path,
        fp32=model,
        fp16=typed.to_half(model, typed.half_nodes(model)).model,
        mixed=typed.to_half(model, typed.followers(model, ["conv1", "conv2"])).model,
        int8=quantized(model),
        float_weights=quantized(model, weights="float"),
        int8_fp16=typed.to_half(new, typed.half_nodes(new)).model,
        packed=storage.pack(model),
    )
    assert {name: one["built"] for name, one in found.items()} == dict.fromkeys(found, True)
    types = {
        name: {kind.rpartition(".")[2] for kind in one["types"]} for name, one in found.items()
    }
    assert types["fp32"] == {"FLOAT"}
    assert types["fp16"] == types["mixed"] == {"FLOAT", "HALF"}
    assert types["int8"] == types["float_weights"] == {"FLOAT", "INT8"}
    assert types["int8_fp16"] == {"FLOAT", "HALF", "INT8"}


def test_the_parser_refuses_what_the_rules_refuse(rtx_python, tmp_path):
    found = build(
        rtx_python,
        tmp_path,
        zero_point=quantized(chain(), zero=3),
        operator=network([node("Det", ["x"], ["y"], "det")], shape=(1, 4)),
    )
    assert not any(one["parsed"] for one in found.values())
    assert found["zero_point"]["errors"][0].startswith("q_in: ")
    assert "zero point" in found["zero_point"]["errors"][0]
    assert found["operator"]["errors"][0].startswith("det: ")


def test_uint8_pairs_are_taken_for_int8_which_is_why_the_rules_refuse_them(rtx_python, tmp_path):
    found = build(rtx_python, tmp_path, uint8=quantized(chain(), kind=np.uint8))
    types = {name.rpartition(".")[2] for name in found["uint8"]["types"]}
    assert "INT8" in types and "UINT8" not in types
