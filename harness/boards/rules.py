"""Which of ``latency_models``' fusion rules hold on a board: from its facts to their name."""

from __future__ import annotations

import re

from harness.records import BoardFacts
from harness.tensorrt import versions

__all__ = ["fusion_rules"]

# Runtimes before it leave the float weights of quantized layers alone: WeightBiasQuantization came
# with onnxruntime 1.21 (pull request 22969, merged in January 2025, after 1.20.1).
_QUANTIZES_WEIGHTS = (1, 21)


def fusion_rules(facts: BoardFacts) -> str:
    """The name of the rules by which the board's runtime fuses: a key of ``fusion.RUNTIMES``.

    The blocked layout is 16 channels wide with AVX-512, 8 on other x86 and absent elsewhere
    (onnxruntime, ``MlasNchwcGetBlockSize``); old runtimes quantize less. There are no rules for an
    old runtime and 8 channels: widths that are no multiple of 16 are then taken for slower than
    they are, which is little beside a layer taken for integer that is not. TensorRT's rules are
    those of 8.0 on.
    """
    if versions.is_tensorrt(facts.runtime):
        return "tensorrt"
    old = _version(facts.runtime_version) < _QUANTIZES_WEIGHTS and facts.runtime == "onnxruntime"
    name = "onnxruntime-1.10-cpu" if old else "onnxruntime-cpu"
    if facts.machine.lower() not in ("x86_64", "amd64", "i686"):
        return f"{name}-arm"
    # Agents of old did not say which vectors there are; VNNI comes with AVX-512 but on some PCs.
    wide = facts.simd == "avx512" or (facts.simd is None and facts.int8 == "vnni")
    return name if wide or old else f"{name}-avx2"


def _version(text: str) -> tuple[int, int]:
    """Major and minor of a version; a text that is none counts as the newest."""
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (10**6, 0)
