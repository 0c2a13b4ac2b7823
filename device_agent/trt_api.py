"""What TensorRT's versions differ in, and what a chip is fast at.

``tensorrt`` (8.0 to 11) and ``tensorrt_rtx`` are one API with different parts. Nothing here looks
at a version's number: each difference is asked of the bindings themselves. Nothing is imported
until ``load`` is called.
"""

import collections
import importlib
from typing import NamedTuple

# What a logger keeps of what TensorRT says: warnings and errors, the latest.
MOST_LINES, LONGEST_LINE = 60, 600

Difference = NamedTuple("Difference", [("name", str), ("since", str), ("has", object)])


def _has(owner, name):
    def ask(trt):
        return hasattr(getattr(trt, owner, None), name)

    return ask


# Name, the versions that have it, and how the bindings tell. Sources: TensorRT's release notes and
# the Python API's reference of 8.0, 8.2, 8.4, 8.5, 10 and 11; for RTX its bindings, 1.7.
DIFFERENCES = (
    # Flags and precisions of layers decide. Without it the ONNX file's own types do.
    Difference("weak_typing", "8.0 to 10, not RTX", _has("BuilderFlag", "FP16")),
    Difference(
        "strong_typing", "9.1 on, RTX", _has("NetworkDefinitionCreationFlag", "STRONGLY_TYPED")
    ),
    # A flag that parsing ONNX needs, until 10 made it the only way.
    Difference(
        "explicit_batch", "8.0 to 10", _has("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH")
    ),
    # Else config.max_workspace_size, whose default is 0.
    Difference("memory_pools", "8.4 on, RTX", _has("IBuilderConfig", "set_memory_pool_limit")),
    Difference("layer_info", "8.2 on, RTX", _has("ICudaEngine", "create_engine_inspector")),
    # Else STRICT_TYPES, which prefers where OBEY would refuse.
    Difference(
        "precision_constraints", "8.2 to 10", _has("BuilderFlag", "OBEY_PRECISION_CONSTRAINTS")
    ),
    # Tensors by name, else bindings by number.
    Difference("named_tensors", "8.5 on, RTX", _has("IExecutionContext", "execute_async_v3")),
    Difference("fast_precisions", "8.0 to 10", _has("Builder", "platform_has_fast_fp16")),
    # RTX has the calls, which do nothing and warn that they are deprecated.
    Difference("timing_cache", "8.0 on", _has("IBuilderConfig", "create_timing_cache")),
    Difference("node_names_in_errors", "10 on, RTX", _has("ParserError", "node_name")),
)

# By compute capability, whether fp16 and int8 are faster than fp32. Source: "Hardware and
# Precision" in the support matrix of TensorRT 8.2, and of 10 for what came later.
FAST = {
    "5.0": (False, False),
    "5.2": (False, False),
    "5.3": (True, False),
    "6.0": (True, False),
    "6.1": (False, True),
    "6.2": (True, False),
}
# Volta and all that came after it have both.
FAST_FROM = 7


class UnsupportedOption(ValueError):
    """An option that this version of TensorRT, or this chip, does not have."""


def fast(compute):
    """Whether fp16 and int8 are faster than fp32 on a chip such as ``5.3``; (None, None): unknown.

    Where int8 is not, it is a storage format: TensorRT refuses networks with Q/DQ there.
    """
    if compute is None:
        return None, None
    if int(compute.partition(".")[0]) >= FAST_FROM:
        return True, True
    return FAST.get(compute, (None, None))


def load(flavour):
    """TensorRT's bindings: ``flavour`` is ``tensorrt`` or ``tensorrt_rtx``."""
    return importlib.import_module(flavour)


def features(trt):
    """Which of ``DIFFERENCES`` these bindings have, by name."""
    found = {one.name: bool(one.has(trt)) for one in DIFFERENCES}
    found["timing_cache"] = found["timing_cache"] and not is_rtx(trt)
    return found


def is_rtx(trt):
    """Whether these are the bindings of TensorRT-RTX."""
    return trt.__name__.partition(".")[0] == "tensorrt_rtx"


def title(trt):
    """What to call these bindings in a message, as ``TensorRT 8.2.1.8``."""
    return "TensorRT%s %s" % ("-RTX" if is_rtx(trt) else "", trt.__version__)


def logger(trt):
    """A logger that keeps the latest warnings and errors in ``lines``; it prints nothing."""

    class Kept(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)
            self.lines = collections.deque(maxlen=MOST_LINES)

        def log(self, severity, msg):
            if severity <= trt.ILogger.WARNING:
                letter = "W" if severity == trt.ILogger.WARNING else "E"
                self.lines.append("[%s] %s" % (letter, msg[:LONGEST_LINE]))

        def errors(self):
            """What it said as errors, on one line."""
            return "; ".join(line[4:] for line in self.lines if line.startswith("[E]"))

    return Kept()


def fast_precisions(trt, builder, compute):
    """Whether fp16 and int8 are fast: by TensorRT's own word, else by the chip; None: unknown."""
    if features(trt)["fast_precisions"]:
        return builder.platform_has_fast_fp16, builder.platform_has_fast_int8
    return fast(compute)
