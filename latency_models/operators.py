"""The operators of a network, and the table of what kind of kernel each one runs as."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ACTIVATIONS", "KINDS", "QDQ", "VIEWS", "Op", "Shape"]

Shape = tuple[int, ...]

# A QuantizeLinear and the DequantizeLinear nodes that read it: one logical operator.
QDQ = "QDQ"

_OPERATORS_OF_KIND = {
    "conv": "Conv ConvTranspose",
    "gemm": "Gemm MatMul",
    "elementwise": (
        "Relu LeakyRelu Clip HardSigmoid HardSwish Abs Neg Sign Not Cast Reciprocal Floor Ceil "
        "Round ThresholdedRelu"
    ),
    "transcendental": (
        "Sigmoid Tanh Erf Exp Log Sqrt Pow Gelu QuickGelu Softplus Mish Elu Selu Celu Sin Cos"
    ),
    "binary": (
        "Add Sub Mul Div Min Max Sum Mean Where Equal Greater GreaterOrEqual Less LessOrEqual "
        "And Or Xor Mod PRelu"
    ),
    "pool": "MaxPool AveragePool LpPool",
    "global_pool": "GlobalAveragePool GlobalMaxPool",
    "reduce": (
        "ReduceMean ReduceSum ReduceMax ReduceMin ReduceL1 ReduceL2 ReduceProd ReduceSumSquare "
        "ArgMax ArgMin CumSum"
    ),
    "softmax": "Softmax LogSoftmax Hardmax",
    "normalise": (
        "BatchNormalization InstanceNormalization LayerNormalization GroupNormalization "
        "SimplifiedLayerNormalization LRN LpNormalization"
    ),
    "concat": "Concat",
    "move": "Slice Split Pad Gather GatherElements Expand Tile DepthToSpace SpaceToDepth TopK",
    "transpose": "Transpose",
    "resize": "Resize Upsample",
    "view": "Reshape Flatten Squeeze Unsqueeze Identity Dropout",
    QDQ: QDQ,
}
# Kind of kernel by ONNX operator. An operator that is missing here is an UnknownOperator.
KINDS = {op: kind for kind, ops in _OPERATORS_OF_KIND.items() for op in ops.split()}

# Runtimes let these work on the tensor where it lies: no bytes move.
VIEWS = frozenset(op for op, kind in KINDS.items() if kind == "view")

# What a convolution can apply to its sum before writing it (onnxruntime 1.31,
# conv_activation_fusion.cc and conv_activation_action; HardSwish after its own fusion).
ACTIVATIONS = frozenset(
    ["Relu", "LeakyRelu", "Clip", "HardSigmoid", "HardSwish", "Sigmoid", "Tanh"]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Op:
    """One operator of the network as exported, before the runtime fuses anything.

    ``inputs`` and ``outputs`` are activation tensors; constants are in ``weight`` and ``bias``
    (names) and ``constant_shapes``. ``dequantized`` holds the element counts of constants that are
    stored as integers behind a DequantizeLinear; ``integer_weight`` says whether the weight is one
    of them. ``kept_float``: the input is dequantized with one scale a channel, which keeps the
    runtime from quantizing a float weight by itself. ``mode`` is how a Pad pads. ``exported`` tells
    that an output is also an output of the network; ``nodes`` are the ONNX nodes that this is and
    ``place`` is where the first of them stands in the network.
    """

    name: str
    op: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    in_shapes: tuple[Shape, ...]
    out_shapes: tuple[Shape, ...]
    weight: str | None = None
    bias: str | None = None
    weight_shape: Shape = ()
    constant_shapes: tuple[Shape, ...] = ()
    dequantized: tuple[int, ...] = ()
    integer_weight: bool = False
    kept_float: bool = False
    window: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    groups: int = 1
    axis: int | None = None
    axes: tuple[int, ...] = ()
    permutation: tuple[int, ...] = ()
    mode: str = ""
    place: int = 0
    exported: bool = False

    @property
    def kind(self) -> str:
        """The kind of kernel that this runs as, before layout and shape refine it."""
        return KINDS[self.op]

    @property
    def depthwise(self) -> bool:
        """True for a convolution that filters every channel on its own."""
        return self.op == "Conv" and self.groups > 1 and self.groups == self.in_shapes[0][1]
