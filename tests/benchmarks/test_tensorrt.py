"""What boardfit makes of the demo and the benchmarks' networks is built by TensorRT's own builder.

Real engines of TensorRT-RTX, on the CPU. The larger networks have random weights: whether they are
built does not depend on them.
"""

from __future__ import annotations

import pytest

from tests.benchmarks import tensorrt
from tests.tensorrt import rtx
from tests.tensorrt.conftest import rtx_python  # noqa: F401  (fixture)

# VGG-16 takes 6 GB and minutes; the benchmark builds it.
BRIEF = ("resnet18", "mobilenet_v2")
TYPES = {
    "fp32": "float",
    "fp16": "float half",
    "int8": "float int8",
    "int8 + fp16": "float half int8",
    "mixed": "float half int8",
}


def built(interpreter, folder, name):
    """The benchmark's rows of one network."""
    (one,) = tensorrt.subjects([name], folder)
    facts = tensorrt.target(rtx.version(interpreter))
    return list(tensorrt.rows(one, folder, interpreter, facts))


def test_every_variant_of_the_demo_is_built(rtx_python, tmp_path):  # noqa: F811
    rows = built(rtx_python, tmp_path, "demo")
    pruned = [f"pruned {name}" for name in ("fp32", "fp16", "int8")]
    assert [row.variant for row in rows] == [*TYPES, *pruned]
    assert all(row.parsed and row.built and row.why == "" for row in rows), rows
    found = {row.variant: row for row in rows}
    for name, row in found.items():
        assert row.types == TYPES[name.removeprefix("pruned ")]
        assert row.engine_bytes > 0 and row.build_s > 0
    assert found["fp32"].agreement == 1.0
    assert all(found[name].agreement >= 0.95 for name in TYPES)
    # Half of the channels are a quarter of the weights, beside constants and code of the engine.
    assert found["pruned fp32"].file_bytes < 0.4 * found["fp32"].file_bytes
    assert found["fp16"].file_bytes < 0.6 * found["fp32"].file_bytes


@pytest.mark.parametrize("name", BRIEF)
def test_the_published_networks_are_built_in_three_precisions(
    rtx_python,  # noqa: F811
    tmp_path,
    name,
):
    rows = built(rtx_python, tmp_path, name)
    assert [(row.variant, row.types) for row in rows] == list(TYPES.items())[:3]
    assert all(row.built for row in rows), rows
