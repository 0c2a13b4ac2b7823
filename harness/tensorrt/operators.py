"""Which ONNX operators each release of TensorRT's parser reads.

Sources: the support matrices in docs/operators.md of onnx-tensorrt for 8.0, 8.4, 8.5, 9.2 and
10.15, and its Changelog.md for what came between (8.2, 8.6, 10.0 to 10.6): ``Release.operators_by``
names both where a release has no matrix of its own here. Where the two differ on 8.0
(NonMaxSuppression, Resize) the changelog of the release counts: the matrix is of an earlier state.
Dropout is read as the identity since long before 8.0, which the matrix of 8.0 denies. TensorRT-RTX
1.7: what its own parser answers (``OnnxParser.supports_operator``) for every operator of ONNX 1.23.
"""

from __future__ import annotations

from harness.tensorrt.versions import RTX, Release

__all__ = ["Support", "remedy", "support"]

Support = bool | None

# The matrix of 8.0: all that says Y.
_FIRST = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast
Ceil Celu Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace
DequantizeLinear Div Dropout Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather
GatherElements Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual
HardSigmoid Identity ImageScaler InstanceNormalization LRN LSTM LeakyRelu Less LessOrEqual Log
LogSoftmax Loop LpNormalization LpPool MatMul Max MaxPool Mean Min Mul Neg NonMaxSuppression
Not Or PRelu Pad ParametricSoftplus Pow QuantizeLinear RNN RandomUniform RandomUniformLike
Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence ScaledTanh Scan Selu Shape
Sigmoid Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum
Tan Tanh ThresholdedRelu Tile TopK Transpose Unsqueeze Upsample Where
"""
# What later releases added, by Changelog.md and the matrices.
_ADDED: dict[tuple[int, int], str] = {
    (8, 2): "Einsum GatherND If IsNaN Round Scatter ScatterElements ScatterND Sign",
    (8, 4): "Shrink Xor",
    (8, 5): "GridSample HardSwish MeanVarianceNormalization Mod NonZero OneHot RandomNormal "
    "RandomNormalLike Reciprocal RoiAlign Trilu",
    (8, 6): "GroupNormalization IsInf LayerNormalization",
    (9, 2): "CastLike Hardmax",
    (10, 0): "BlackmanWindow DeformConv HammingWindow HannWindow STFT",
}
# In the matrix of 10.15, not in that of 9.2, and in no line of the changelog until 10.6.
_BY_10_15 = "Attention Gelu Mish RMSNormalization RotaryEmbedding TensorScatter"
# What the parser of TensorRT-RTX 1.7 refuses though TensorRT 10.15 reads it, and the other way.
_NOT_RTX = frozenset({"DeformConv"})
_RTX_ALONE = frozenset({"CausalConvWithState", "LinearAttention", "Swish"})

_QUANTIZED = frozenset(
    {"ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul"}
)


def support(op_type: str, release: Release) -> Support:
    """Whether a release reads an operator of ONNX's own domain; None where no source tells."""
    if release is RTX:
        if op_type in _NOT_RTX:
            return False
        return op_type in _RTX_ALONE or op_type in _up_to((99, 0)) or op_type in _BY_10_15.split()
    if op_type in _up_to(release.since):
        return True
    if op_type in _BY_10_15.split() and release.since >= (8, 6):
        return True if release.since >= (10, 15) else None
    return False


def _up_to(since: tuple[int, int]) -> frozenset[str]:
    """What is read by the release that begins at ``since``.

    What came within a line of versions (STFT in 10.5) counts from its beginning.
    """
    later = (names.split() for version, names in _ADDED.items() if version <= since)
    return frozenset(_FIRST.split()).union(*later)


def remedy(op_type: str, release: Release) -> str:
    """What to do about an operator that a release does not read."""
    if op_type in _QUANTIZED:
        return "quantize the float network with boardfit, which writes Q/DQ (QuantizeLinear pairs)"
    newer = [version for version, names in _ADDED.items() if op_type in names.split()]
    if newer and newer[0] > release.since and release is not RTX:
        return (
            f"TensorRT {newer[0][0]}.{newer[0][1]} reads it; else export the network at a lower "
            "opset, where it is made of simpler operators, or replace it in the network"
        )
    return "replace it in the network by operators that are read, or run it with onnxruntime"
