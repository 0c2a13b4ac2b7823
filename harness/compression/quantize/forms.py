"""The form of Q/DQ that a board's runtime turns into integer kernels."""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.records import BoardFacts
from harness.tensorrt import chips, versions

__all__ = ["Form", "available_precisions", "form_of", "usual_form"]

X86 = frozenset({"x86_64", "amd64", "i386", "i686"})
# DequantizeLinear on four bits: opset 21, in onnxruntime's CPU provider since 1.20 at the latest.
INT4_SINCE = (1, 20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How layers are written as Q/DQ; weights are symmetric with a scale a channel in all forms.

    - ``symmetric``: activations are int8 with zero point 0; else uint8 with any.
    - ``at_inputs``: Q/DQ stands in front of integer layers, and in front of one summand of an
      addition, so that the other one's layer can take the addition in; ReLU stays in the graph.
      Else it stands around every node that carries bytes, and ReLU and Clip become the range of
      the layer before them.
    - ``integer_bias``: biases are int32 at the scale of input times weight; else float.
    - ``integer_weights``: weights are stored as int8; else as float behind Q and DQ.
    - ``weight_bits``: 7 where pairs of 8-bit products saturate in 16 bits.
    - ``widens_input``: a fourth channel of zeros is added to three-channel inputs.
    """

    runtime: str
    symmetric: bool
    at_inputs: bool
    integer_bias: bool
    integer_weights: bool
    weight_bits: int
    widens_input: bool


def form_of(board: BoardFacts) -> Form:
    """The form for the board's runtime, version and processor.

    TensorRT wants symmetric int8 and no Q/DQ on biases, and fuses convolution, bias, addition and
    ReLU itself (NVIDIA TensorRT guide, explicit quantization, Q/DQ placement recommendations).
    onnxruntime's CPU kernels want uint8: with symmetric int8 ReLU is not absorbed, and MLAS runs
    depthwise convolutions three times slower (0.33 ms against 0.10 for 240 channels of 28 x 28
    with 1.31 on AVX-512). Its integer convolution gathers a window byte by byte, and four channels
    come faster than three: 0.41 against 0.61 ms for a 3x3 stem at 224 x 224, 0.34 against 1.06
    for one of stride 1 at 112 x 112 (measured on x86 only, so done there only).
    """
    if versions.is_tensorrt(board.runtime):
        release = versions.release_of(board.runtime, board.runtime_version)
        return Form(
            runtime=board.runtime,
            symmetric=True,
            at_inputs=True,
            integer_bias=False,
            integer_weights=release.integer_weights,
            weight_bits=8,
            widens_input=False,
        )
    return Form(
        runtime=board.runtime,
        symmetric=False,
        at_inputs=False,
        integer_bias=True,
        integer_weights=True,
        weight_bits=7 if board.int8 == "avx2" else 8,
        widens_input=board.machine.lower() in X86,
    )


def usual_form(rules: str) -> Form:
    """The form where nobody knows more of a board than the fusion ``rules`` of its runtime.

    TensorRT is taken for a release before 10, whose parsers want int8 weights as floats behind Q:
    the larger file of the two.
    """
    gpu = "tensorrt" in rules
    return Form(
        runtime="tensorrt" if gpu else "onnxruntime",
        symmetric=gpu,
        at_inputs=gpu,
        integer_bias=not gpu,
        integer_weights=not gpu,
        weight_bits=8,
        widens_input=not gpu and not rules.endswith("arm"),
    )


def available_precisions(board: BoardFacts) -> tuple[str, ...]:
    """The precisions worth trying on a board, the exact one first.

    int8 is left out where the board has no fast integer kernels; fp16 on onnxruntime's CPU
    provider is a storage format with casts around every kernel, so it never pays. With TensorRT the
    GPU decides (``tensorrt.chips``): there is no int8 on sm_53 and sm_62, where it only stores.
    """
    if versions.is_tensorrt(board.runtime):
        return ("fp32",) if board.gpu is None else chips.capability_of(board.gpu).precisions
    return ("fp32",) if board.int8 == "slow" else ("fp32", "int8")


def loads_int4(board: BoardFacts) -> bool:
    """Whether the board's runtime loads weights of four bits (ONNX INT4, opset 21)."""
    return board.runtime == "onnxruntime" and _version(board.runtime_version) >= INT4_SINCE


def _version(text: str) -> tuple[int, int]:
    """Major and minor of a version; (0, 0), the most careful reading, where it is none."""
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)
