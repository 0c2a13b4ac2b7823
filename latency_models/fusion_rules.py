"""Which operators GPU runtimes run as one kernel: tables, one row a rule, and what they rest on.

Source for onnxruntime: ``core/optimizer/*_fusion.cc`` and ``graph_transformer_utils.cc``, which
says for which providers each is registered; the file stands in each row. The last onnxruntime with
a build for a Jetson Nano is 1.11; rules that came later belong to a runtime of their own.

Source for TensorRT: developer guide 8.x, "Types of Fusions" (the row names the paragraph), and the
layer names of real engines: trtexec 8.0.1 on a Jetson Nano, 8.x on a TX2 (a convolution takes up
no LeakyRelu: ``Conv_80``, ``PWN(LeakyRelu_83, Add_84)``), GoogLeNet on an AGX Xavier (1x1
convolutions of one input merged: ``1x1 || 3x3_reduce || 5x5_reduce``, then ``1x1 copy``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from latency_models.operators import KINDS, QDQ, Op, Shape
from latency_models.patterns import Tensors

__all__ = ["GPU_RUNTIMES", "POINTWISE", "GpuRuntime", "Group", "Joint", "Rule"]


@dataclass(slots=True)
class Group:
    """Operators that run as one kernel: ``head`` decides what it is, ``op`` what it runs as.

    ``stage`` is what was taken up last. ``integer``: all that it reads is quantized, and the
    runtime has an integer kernel for it. ``besides`` are tensors that it writes beside ``output``,
    because a rule that ``keeps`` them joined it; ``Work`` counts the bytes of ``output`` alone.
    """

    head: Op
    ops: list[Op]
    op: str
    inputs: list[str]
    shapes: list[Shape]
    output: str
    integer: bool = False
    stage: str = "plain"
    besides: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, op: Op) -> Group:
        """The group of ``op`` alone."""
        return cls(op, [op], op.op, list(op.inputs), list(op.in_shapes), op.outputs[0])


@dataclass(frozen=True, slots=True)
class Joint:
    """A host, the group that reads its output, and the tensor between them."""

    host: Group
    follower: Group
    tensor: str
    tensors: Tensors

    @property
    def constant(self) -> Shape | None:
        """The shape of the follower's constant operand, if it has one and no second tensor."""
        op = self.follower.head
        alone = len(self.follower.inputs) == 1 and len(self.follower.ops) == 1
        return op.constant_shapes[0] if alone and op.constant_shapes else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """The kernel of a ``host`` operator takes up a group that reads its result.

    ``takes`` is what the group runs as; ``after`` are the stages at which the host still does so
    and ``becomes`` is the stage then. ``leads``: whose kernel it is. ``pick``: which host does it
    where several could. Nobody else may read the tensor between them, unless the rule ``keeps``:
    then the kernel writes that tensor, too, for whoever else reads it (``Group.besides``). What
    such a rule takes up reads nothing but that tensor, so that the kernel can run as early as the
    host alone.
    """

    name: str
    host: frozenset[str]
    takes: frozenset[str]
    source: str
    after: frozenset[str] = frozenset(["plain"])
    becomes: str = "fused"
    when: Callable[[Joint], bool] | None = None
    leads: Literal["host", "follower"] = "host"
    keeps: bool = False
    pick: Literal["first", "last"] = "last"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuRuntime:
    """What a GPU runtime does with a network; tensors are NCHW throughout.

    ``rules`` are tried in their order; one that ``keeps`` may give a kernel a second output.
    ``patterns`` are the chains it knows as one operator. ``integers``: Q/DQ pairs become integer
    kernels (otherwise they are executed as they stand). ``writes_in_place``: producers of a
    concatenation's inputs write into its output. ``slices``: Split is a kernel for every part.
    ``pools_means``: a mean over height and width is a pooling. ``scales``: a batch norm of its own
    is an element-wise kernel.

    ``merges``: which sibling convolutions become one kernel that computes the outputs of all.
    Siblings read the same tensor, and it alone, with the same window, stride and precision, without
    groups; integer ones stay apart.

    - ``"none"``: every convolution is a kernel of its own.
    - ``"1x1"``: siblings with a window of one and the same activation, or all without one.
    - ``"all"``: siblings of any window, whatever their activations (seen in the times of
      NAS-Bench-201 cells on a Jetson Nano, and in no log).
    """

    name: str
    rules: tuple[Rule, ...]
    patterns: frozenset[str] = frozenset()
    integers: bool = False
    merges: Literal["none", "1x1", "all"] = "none"
    writes_in_place: bool = False
    slices: bool = False
    pools_means: bool = False
    scales: bool = False


def _kind(*kinds: str) -> frozenset[str]:
    return frozenset(op for op, kind in KINDS.items() if kind in kinds)


def _named(names: str) -> frozenset[str]:
    return frozenset(names.split())


# What a generated element-wise kernel can hold.
POINTWISE = _kind("elementwise", "transcendental", "binary") - {"Cast"}
_CONV = _named("Conv ConvTranspose")
# Not Div: a constant may stand above the line as well as below it.
_SCALE = _named("Mul Add Sub")
_RECTIFIERS = _named("Relu Clip")
_ANY_STAGE = _named("plain scale sum activation pointwise fused")


def _per_channel(joint: Joint) -> bool:
    """One constant a channel of an image, or a single one."""
    shape = joint.constant
    if shape is None:
        return False
    channels = joint.tensors.shapes[joint.tensor][1]
    return math.prod(shape) == 1 or (math.prod(shape) == channels and len(shape) >= 3)


def _per_channel_floats(joint: Joint) -> bool:
    return _per_channel(joint) and _float_weights(joint)


def _float_weights(joint: Joint) -> bool:
    """No constant is stored as integers, so that weights can be scaled once and for all."""
    return not joint.host.head.dequantized and not joint.follower.head.dequantized


def _bias(joint: Joint) -> bool:
    """A constant with one value for each output of a matrix product with constant weights."""
    shape = joint.constant
    outputs = joint.tensors.shapes[joint.tensor][-1]
    return bool(joint.host.head.weight) and shape is not None and math.prod(shape) == outputs


def _bias_of_matrix(joint: Joint) -> bool:
    return _bias(joint) and len(joint.tensors.shapes[joint.tensor]) == 2


def _residual(joint: Joint) -> bool:
    """The sum of two tensors of the same shape, in a group of its own."""
    group = joint.follower
    return len(group.ops) == 1 and len(group.inputs) == 2 and len(set(group.shapes)) == 1


def _rectified_residual(joint: Joint) -> bool:
    after = joint.tensors.after(joint.follower.head)
    return _residual(joint) and after is not None and after.op == "Relu"


def _zero_padding(joint: Joint) -> bool:
    """Zeros around height and width, read by a convolution and by nobody else."""
    before, after = joint.host.head.in_shapes[0], joint.host.head.out_shapes[0]
    leading = joint.tensor == joint.follower.inputs[0]
    grows = all(a >= b for a, b in zip(after, before, strict=True))
    plain = joint.host.head.mode in ("", "constant")
    return leading and plain and grows and before[:2] == after[:2]


def _no_larger(joint: Joint) -> bool:
    """The follower does not shrink what the host computes (it may broadcast it)."""
    after = joint.tensors.shapes[joint.follower.output]
    return math.prod(joint.tensors.shapes[joint.tensor]) <= math.prod(after)


def _sum_before_norm(joint: Joint) -> bool:
    shapes = joint.host.shapes
    return len(shapes) == 2 and shapes[0] == shapes[1] and len(shapes[0]) == 3


def _bias_before(joint: Joint) -> bool:
    host = joint.host
    shapes = host.head.constant_shapes
    return len(host.inputs) == 1 and bool(shapes) and shapes[0] == host.shapes[0][-1:]


def _is_integer(joint: Joint) -> bool:
    return joint.host.integer


_CUDA = (
    Rule(
        name="batch norm into convolution",
        host=_named("Conv"),
        takes=_named("BatchNormalization"),
        when=_float_weights,
        becomes="scale",
        source="conv_bn_fusion.cc",
    ),
    Rule(
        name="constant factor or summand into convolution",
        host=_named("Conv"),
        takes=_named("Mul Add"),
        after=_named("plain scale"),
        when=_per_channel_floats,
        becomes="scale",
        source="conv_mul_fusion.cc, conv_add_fusion.cc",
    ),
    Rule(
        name="bias into matrix product",
        host=_named("MatMul"),
        takes=_named("Add"),
        when=_bias_of_matrix,
        becomes="scale",
        source="matmul_add_fusion.cc: of two dimensions only; gives a Gemm",
    ),
    Rule(
        name="sum and Relu into convolution",
        host=_named("Conv"),
        takes=_named("Add"),
        after=_named("plain scale"),
        when=_rectified_residual,
        becomes="sum",
        pick="first",
        source="conv_add_act_fusion.cc: on CUDA only where a Relu follows the sum",
    ),
    Rule(
        name="Relu into convolution",
        host=_named("Conv"),
        takes=_named("Relu"),
        after=_named("plain scale sum"),
        becomes="activation",
        source="conv_activation_fusion.cc: on CUDA no other activation",
    ),
    Rule(
        name="bias into Gelu",
        host=_named("Add"),
        takes=_named("Gelu"),
        when=_bias_before,
        leads="follower",
        source="bias_gelu_fusion.cc",
    ),
    Rule(
        name="sum into layer norm",
        host=_named("Add"),
        takes=_named("LayerNormalization"),
        when=_sum_before_norm,
        leads="follower",
        source="skip_layer_norm_fusion.cc: sequences of three dimensions",
    ),
)

_PADDING = Rule(
    name="padding into convolution",
    host=_named("Pad"),
    takes=_CONV,
    when=_zero_padding,
    leads="follower",
    source="onnxruntime pad_fusion.cc; TensorRT: Padding and Convolution/Deconvolution",
)

_TENSORRT = (
    _PADDING,
    Rule(
        name="scale into convolution",
        host=_CONV,
        takes=_named("BatchNormalization"),
        after=_named("plain scale"),
        becomes="scale",
        source="Convolution and Scale",
    ),
    Rule(
        name="constant factor or summand into convolution",
        host=_CONV,
        takes=_SCALE,
        after=_named("plain scale"),
        when=_per_channel,
        becomes="scale",
        source="Convolution and Scale",
    ),
    Rule(
        name="bias into matrix product",
        host=_named("MatMul Gemm"),
        takes=_named("Add"),
        when=_bias,
        becomes="scale",
        source="Convolution and Scale; a product with constant weights runs as a 1x1 convolution",
    ),
    Rule(
        name="sum into convolution",
        host=_CONV,
        takes=_named("Add Sum"),
        after=_named("plain scale"),
        when=_residual,
        becomes="sum",
        source="Convolution and ElementWise; the later branch: Conv_124, Conv_125 + Add_126",
    ),
    Rule(
        name="Relu or clip into convolution",
        host=_CONV | _named("Gemm MatMul"),
        takes=_RECTIFIERS,
        after=_named("plain scale sum"),
        becomes="activation",
        source="Convolution and ReLU Activation, Convolution and Clip",
    ),
    Rule(
        name="scales",
        host=_named("BatchNormalization"),
        takes=_SCALE,
        when=_per_channel,
        source="Scale and Scale",
    ),
    Rule(
        name="scale and activation",
        host=_named("BatchNormalization"),
        takes=_kind("elementwise", "transcendental") - {"Cast"},
        after=_named("plain fused"),
        becomes="activation",
        when=lambda joint: len(joint.follower.ops) == 1,
        source="Scale and Activation",
    ),
    Rule(
        name="chain of element-wise operators",
        host=POINTWISE,
        takes=POINTWISE,
        after=_named("plain pointwise"),
        when=_no_larger,
        becomes="pointwise",
        source="PointWise Fusion; broadcast operands too: EfficientDet-D0's count of layers",
    ),
    Rule(
        name="transposes",
        host=_named("Transpose"),
        takes=_named("Transpose"),
        after=_named("plain fused"),
        source="Shuffle and Shuffle",
    ),
    Rule(
        name="quantization into the kernel before it",
        host=frozenset(KINDS),
        takes=frozenset([QDQ]),
        after=_ANY_STAGE,
        when=_is_integer,
        becomes="quantized",
        source="Quantize and Dequantize fusion (Working with INT8, Explicit Quantization)",
    ),
)

# Element-wise chains came with TensorRT 7; before, each sum was a kernel, and took up its Relu.
_TENSORRT_6 = (
    *(rule for rule in _TENSORRT if rule.becomes not in ("sum", "pointwise")),
    Rule(
        name="Relu into sum",
        host=_named("Add Sum"),
        takes=_named("Relu"),
        keeps=True,
        source="times of NAS-Bench-201 cells on a Jetson Nano: a Relu after a sum costs nothing, "
        "whoever else reads the sum, and a sum costs the same with and without a convolution",
    ),
)

GPU_RUNTIMES = {
    runtime.name: runtime
    for runtime in (
        # Two choices rest on times: a gate runs as two kernels (quick_gelu_fusion.cc came with
        # 1.14) but always the same two, and is kept together as one kind of work; a sum stays
        # apart from its convolution. Both predict a Jetson Nano's networks better, in
        # cross-validation within the ones fitted to.
        GpuRuntime(
            name="onnxruntime-cuda",
            rules=tuple(rule for rule in _CUDA if rule.becomes != "sum"),
            patterns=frozenset(["Gelu", "HardSwish", "LayerNormalization", "QuickGelu"]),
            scales=True,
        ),
        # pad_fusion.cc came after 1.14.
        GpuRuntime(
            name="onnxruntime-1.17-cuda",
            rules=(_PADDING, *_CUDA),
            patterns=frozenset(["Gelu", "LayerNormalization", "QuickGelu"]),
            scales=True,
        ),
        GpuRuntime(
            name="tensorrt-6",
            rules=_TENSORRT_6,
            integers=True,
            merges="all",
            writes_in_place=True,
            slices=True,
            pools_means=True,
            scales=True,
        ),
        GpuRuntime(
            name="tensorrt",
            rules=_TENSORRT,
            integers=True,
            merges="1x1",
            writes_in_place=True,
            slices=True,
            pools_means=True,
            scales=True,
        ),
    )
}
