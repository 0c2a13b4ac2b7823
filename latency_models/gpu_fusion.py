"""The groups of a network's operators that a GPU runtime runs as one kernel each."""

from __future__ import annotations

from collections.abc import Sequence

from latency_models.fusion_rules import POINTWISE, GpuRuntime, Group, Joint, Rule
from latency_models.operators import QDQ, Op
from latency_models.patterns import Tensors, find

__all__ = ["group_operators"]

# Kinds with an integer kernel in TensorRT; products need constant weights.
_INTEGER_KINDS = frozenset(
    [
        "conv",
        "gemm",
        "elementwise",
        "transcendental",
        "binary",
        "pool",
        "global_pool",
        "concat",
        "view",
        "move",
        "transpose",
        "resize",
    ]
)


def group_operators(
    ops: Sequence[Op], tensors: Tensors, *, runtime: GpuRuntime
) -> tuple[Group, ...]:
    """The groups in a possible order of execution: what one reads is written before it.

    Every operator is tried, in order, as a part of the kernels that write what it reads: the
    first rule of the runtime's table that fits is applied, until none does.
    """
    return _Fusion(ops, tensors, runtime).groups()


class _Fusion:
    def __init__(self, ops: Sequence[Op], tensors: Tensors, runtime: GpuRuntime) -> None:
        self.ops = ops
        self.place = {op.name: index for index, op in enumerate(ops)}
        self.tensors = tensors
        self.runtime = runtime
        self.group_of: dict[str, Group] = {}

    def groups(self) -> tuple[Group, ...]:
        for op in self.ops:
            if op.name not in self.group_of:
                self._fuse(op)
        unique = {id(group): group for group in self.group_of.values()}
        for group in unique.values():
            group.ops.sort(key=lambda op: self.place[op.name])
        return tuple(sorted(unique.values(), key=self._end))

    def _end(self, group: Group) -> int:
        """Where ``group`` can run: at its last operator, when all that it reads is there.

        One that keeps a tensor writes it where the tensor's own operator stands, for others may
        read it before the operators that the group took up besides.
        """
        if group.besides:
            return self.place[self.tensors.producer[group.besides[0]].name]
        return max(self.place[op.name] for op in group.ops)

    def _fuse(self, op: Op) -> None:
        group = Group.of(op)
        group.integer = self.runtime.integers and self._integer(op)
        found = find(op, self.tensors, self.runtime.patterns)
        if found is not None:
            group.ops.extend(found.ops)
            group.op, group.output = found.name, found.ops[-1].outputs[0]
            group.inputs, group.shapes = [found.source], [self.tensors.shapes[found.source]]
        self._claim(group)
        while (joined := self._joined(group)) is not None:
            group = joined
            self._claim(group)

    def _claim(self, group: Group) -> None:
        for op in group.ops:
            self.group_of[op.name] = group

    def _integer(self, op: Op) -> bool:
        """True if ``op`` reads quantized tensors, and quantized weights if it has any."""
        if op.op == QDQ or op.kind not in _INTEGER_KINDS or not op.inputs:
            return False
        sources = [self.tensors.producer.get(tensor) for tensor in op.inputs]
        if not all(source is not None and source.op == QDQ for source in sources):
            return False
        return op.integer_weight if op.weight is not None else op.kind != "gemm"

    def _joined(self, group: Group) -> Group | None:
        """``group`` and one of its hosts as one group, if there is a rule for that."""
        joints = [
            Joint(self.group_of[made.name], group, tensor, self.tensors)
            for tensor in dict.fromkeys(group.inputs)
            if (made := self.tensors.producer.get(tensor)) is not None and len(made.outputs) == 1
        ]
        joints = [joint for joint in joints if joint.host.output == joint.tensor]
        alone = [j for j in joints if self.tensors.read_only_by(j.tensor, group.ops)]
        for rule in self.runtime.rules:
            hosts = [joint for joint in (joints if rule.keeps else alone) if _fits(rule, joint)]
            if hosts:
                hosts.sort(key=lambda joint: self._end(joint.host))
                return _join(rule, hosts[0] if rule.pick == "first" else hosts[-1])
        return None


def _fits(rule: Rule, joint: Joint) -> bool:
    return (
        joint.host.op in rule.host
        and joint.follower.op in rule.takes
        and joint.host.stage in rule.after
        and (rule.when is None or rule.when(joint))
    )


def _join(rule: Rule, joint: Joint) -> Group:
    host, follower = joint.host, joint.follower
    if rule.leads == "follower":
        place = follower.inputs.index(joint.tensor)
        follower.inputs[place : place + 1] = host.inputs
        follower.shapes[place : place + 1] = host.shapes
        follower.ops[:0] = host.ops
        return follower
    others = [
        (tensor, shape)
        for tensor, shape in zip(follower.inputs, follower.shapes, strict=True)
        if tensor != joint.tensor
    ]
    for tensor, shape in others:
        # An element-wise kernel reads a tensor once, however often it uses it.
        if host.op not in POINTWISE or tensor not in host.inputs:
            host.inputs.append(tensor)
            host.shapes.append(shape)
    host.ops.extend(follower.ops)
    # Only a rule that keeps the tensor gets here while somebody else reads it.
    if not joint.tensors.read_only_by(joint.tensor, follower.ops):
        host.besides.append(joint.tensor)
    host.output = follower.output
    host.stage = rule.becomes
    return host
