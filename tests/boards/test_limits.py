from __future__ import annotations

import pytest

from harness.boards.limits import OnnxLimits, onnx_limits


@pytest.mark.parametrize(
    ("runtime", "version", "limits"),
    [
        # Measured: the Nano's last onnxruntime, and one that came later.
        ("onnxruntime", "1.10.0", OnnxLimits(opset=15, ir=8, proven=True)),
        ("onnxruntime", "1.23.2", OnnxLimits(opset=23, ir=11, proven=True)),
        # Between 1.10 (15) and 1.12 (17): at least what 1.10 reads.
        ("onnxruntime", "1.11.1", OnnxLimits(opset=15, ir=8, proven=False)),
        # Between 1.18 and 1.20, which are alike.
        ("onnxruntime", "1.19.2", OnnxLimits(opset=21, ir=10, proven=True)),
        # Newer than the table: at least what its last row reads.
        ("onnxruntime", "1.99.0", OnnxLimits(opset=26, ir=13, proven=False)),
        ("tensorrt", "8.2.1.8", OnnxLimits(opset=13, ir=None, proven=True)),
        ("tensorrt", "8.0.1.6", OnnxLimits(opset=13, ir=None, proven=True)),
        ("tensorrt", "8.4.1", OnnxLimits(opset=13, ir=None, proven=False)),
        ("tensorrt", "10.3.0", OnnxLimits(opset=19, ir=None, proven=False)),
    ],
)
def test_limits_are_the_tables_and_unproven_between_its_rows(
    runtime: str, version: str, limits: OnnxLimits
) -> None:
    assert onnx_limits(runtime, version) == limits


@pytest.mark.parametrize(
    ("runtime", "version"), [("onnxruntime", "0.5.0"), ("tensorrt", "x"), ("fake", "1.0")]
)
def test_what_the_tables_do_not_know_is_none(runtime: str, version: str) -> None:
    assert onnx_limits(runtime, version) is None
