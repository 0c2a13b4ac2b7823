"""Whether a board's TensorRT can build a network: found out before the network is sent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx

from harness.errors import BuildError, ConfigError
from harness.records import BoardFacts
from harness.tensorrt import operators, placement, versions
from harness.tensorrt.chips import Capability, capability_of
from harness.tensorrt.versions import Release

__all__ = ["Finding", "check", "findings", "read", "require"]

# Beyond these an error lists no further: one export error repeats itself in every block.
MOST_TOLD = 5
_RESIZE_MODES = ("nearest", "linear")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing in a network that the board's TensorRT cannot read (``error``) or may not.

    ``node`` is "" where it concerns the whole file.
    """

    status: Literal["error", "warning"]
    node: str
    op_type: str
    wrong: str
    remedy: str

    def __str__(self) -> str:
        place = f"node {self.node!r} ({self.op_type}): " if self.node else ""
        return f"{place}{self.wrong}; {self.remedy}"


def findings(
    model: onnx.ModelProto, release: Release, capability: Capability | None = None
) -> tuple[Finding, ...]:
    """What in a network a release cannot read, or cannot run fast on a GPU; errors first.

    Operators in subgraphs are looked at too. Without ``capability`` nothing is said of the GPU.
    """
    found = [*_opset(model, release), *_nodes(model.graph, release)]
    if placement.has_pairs(model):
        if capability is not None and not capability.fast_int8:
            found.append(_refused(model, capability))
        else:
            found += [
                Finding(
                    status="error" if one.fatal else "warning",
                    node=one.node,
                    op_type=one.op_type,
                    wrong=one.wrong,
                    remedy=one.remedy,
                )
                for one in placement.violations(model, release)
            ]
    return tuple(sorted(found, key=lambda one: one.status != "error"))


def _opset(model: onnx.ModelProto, release: Release) -> Iterator[Finding]:
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx") and entry.version > release.opset:
            # The parser reads it with a warning where it knows the operators in their new form.
            yield Finding(
                status="warning",
                node="",
                op_type="",
                wrong=f"the file has opset {entry.version}, and TensorRT {release.name} is at home "
                f"up to {release.opset}",
                remedy=f"export it with opset {min(release.opset, 13)}",
            )


def _nodes(graph: onnx.GraphProto, release: Release) -> Iterator[Finding]:
    for node in graph.node:
        yield from _node(node, release)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g, release)
            for inner in attribute.graphs:
                yield from _nodes(inner, release)


def _node(node: onnx.NodeProto, release: Release) -> Iterator[Finding]:
    name = node.name or (node.output[0] if node.output else "")

    def told(status: Literal["error", "warning"], wrong: str, remedy: str) -> Finding:
        return Finding(status=status, node=name, op_type=node.op_type, wrong=wrong, remedy=remedy)

    if node.domain not in ("", "ai.onnx"):
        yield told(
            "warning",
            f"the domain {node.domain} is none of ONNX: it needs a plugin of that name",
            "load the plugin on the board, or export without it",
        )
        return
    support = operators.support(node.op_type, release)
    if support is False:
        by = f" (by {release.operators_by})" if release.operators_by else ""
        wrong = f"TensorRT {release.name} does not read the operator {node.op_type}{by}"
        yield told("error", wrong, operators.remedy(node.op_type, release))
    elif support is None:
        wrong = f"whether TensorRT {release.name} reads {node.op_type} is not known"
        yield told("warning", wrong, "the board's parser will say")
    elif node.op_type == "MaxPool" and len(node.output) > 1 and node.output[1]:
        wrong = "its second output, the indices of the maxima, is not supported"
        yield told("error", wrong, "export without return_indices")
    elif node.op_type == "Resize":
        mode = next((a.s.decode() for a in node.attribute if a.name == "mode"), "nearest")
        if mode not in _RESIZE_MODES and release is not versions.RTX:
            # TensorRT-RTX builds cubic ones although its documents, too, name two modes alone.
            wrong = f"its documents name {' and '.join(_RESIZE_MODES)}, and this resizes by {mode}"
            yield told("warning", wrong, 'use mode="bilinear" in the network if the parser refuses')


def _refused(model: onnx.ModelProto, capability: Capability) -> Finding:
    first = next(n for n in model.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear"))
    chip = f"sm_{capability.compute.replace('.', '')}" if capability.compute else "this GPU"
    return Finding(
        status="error",
        node=first.name or first.output[0],
        op_type=first.op_type,
        wrong=f"{chip} has no fast int8 ({capability.source}), and TensorRT refuses networks with "
        "Q/DQ there",
        remedy="build the float network, in fp16; int8 can only store weights there",
    )


def check(model: onnx.ModelProto, facts: BoardFacts) -> tuple[Finding, ...]:
    """The findings for a board as it was probed; () where its runtime is not TensorRT."""
    if not versions.is_tensorrt(facts.runtime):
        return ()
    release = versions.release_of(facts.runtime, facts.runtime_version)
    capability = None if facts.gpu is None else capability_of(facts.gpu)
    return findings(model, release, capability)


def read(path: Path, *, weights: bool = True) -> onnx.ModelProto:
    """The network in a file, with or without weights that lie in other files; ConfigError."""
    try:
        model: onnx.ModelProto = onnx.load(path, load_external_data=weights)
    except FileNotFoundError as error:
        raise ConfigError(f"{error.filename or path} does not exist; name an .onnx file") from error
    except Exception as error:  # protobuf raises its own kind, which differs by backend
        raise ConfigError(f"{path} is not an ONNX file ({error}); export it anew") from error
    return model


def require(path: Path, facts: BoardFacts) -> tuple[str, ...]:
    """Warnings on a file that the board is to build; BuildError names what it cannot read.

    To be called before the file is sent. Weights in other files are not needed.
    """
    if not versions.is_tensorrt(facts.runtime):
        return ()
    found = check(read(path, weights=False), facts)
    errors = [str(one) for one in found if one.status == "error"]
    if errors:
        more = len(errors) - MOST_TOLD
        told = "\n  ".join(errors[:MOST_TOLD]) + (f"\n  and {more} more" if more > 0 else "")
        raise BuildError(
            f"{path.name} cannot be built by TensorRT {facts.runtime_version} on {facts.board}, "
            f"and was not sent there:\n  {told}"
        )
    return tuple(str(one) for one in found)
