"""How onnxruntime's kernels for x86 spend arithmetic and memory: the ``mlas`` form.

::

    m = (bytes_in + bytes_out) * (1 / bw_act + f / bw_far) + bytes_weights / bw_w
    f = 1 / (1 + (cache / (bytes_in + bytes_out))^8)

``effective_macs`` are the multiply-accumulates that the hardware spends, ``macs / u(shape)``: the
lanes of a vector and the blocks of a layout are filled up, and a position of the window costs
something before the first product. For a dense product of ``rows x (window * k)`` with ``n``::

    rows_tiled * groups * (n_padded * (window * k_padded + out) + gathers * tap)
    n_padded = 16 * (B + a * ceil(B / 4)) / (1 + a / 4),   B = ceil(n / 16)
    rows_tiled = (rows + b * tiles) / (1 + b / 6),   tiles = ceil(width / 6) a row of the image

A kernel holds up to four blocks of outputs in registers and loads each input once for all of them,
which costs ``a`` of a block; it works on up to six positions at once and loads each weight once for
all of them, which costs ``b`` positions (mlas, ``SconvKernelAvx512F``). ``out`` is what storing and
requantizing) one result costs, ``tap`` what gathering one piece of input costs, both in products;
an integer kernel gathers a row of the window at once, all channels (mlas, im2col of NHWC), others
position by position. Where nothing is multiplied, one operation an element read (times the window,
in a pool). A tensor that is larger than the ``cache`` is streamed from beyond it, all of it: a
least-recently-used cache keeps nothing of what is swept through it.

Source: the staircase after ANNETTE (Wess et al., IEEE Access 9, 2021, eq. 3: u = s / (ceil(s / p) *
p)); the sizes of blocks and tiles from mlas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from latency_models.kernels import Works
from latency_models.parameters import DENSE, Array, Indices, Prior
from latency_models.profiles import BoardProfile

__all__ = [
    "Features",
    "eta_prior",
    "features",
    "parts",
    "relative_bandwidth",
    "shared",
    "shared_priors",
    "step",
    "t0_prior",
]

# Kinds whose input channels come in padded blocks (NCHWc).
_BLOCKED_INPUTS = frozenset(["conv_1x1", "conv_3x3", "conv_large", "conv_grouped"])
_LANES = 16
# How sharply time rises where a tensor outgrows the cache: between 0.8 and 1.25 of its size.
_KNEE = 8
# Parameters that all kinds and precisions share: those before a[...].
_SHARED = 10
_BLOCKS_IN_REGISTERS = 4
_TILE = 6

# Shares of the peak that kernels of a kind reach, where nothing is known of the board: orders of
# magnitude from onnxruntime's profiles; each is refitted where it is measured.
_ETA = {
    "conv_1x1": 0.5,
    "conv_3x3": 0.6,
    "conv_large": 0.6,
    "conv_grouped": 0.2,
    "conv_direct": 0.3,
    "conv_im2col": 0.25,
    "conv_transpose": 0.2,
    "conv_depthwise": 0.15,
    "gemm": 0.5,
    "matmul": 0.4,
    "transcendental": 0.015,
    "softmax": 0.005,
    "normalise": 0.01,
    "reduce": 0.03,
    "reduce_strided": 0.01,
    "max_pool": 0.05,
    "average_pool": 0.05,
    "resize": 0.01,
}
_ETA_MOVEMENT = 0.03


def shared(precisions: Sequence[str]) -> int:
    """How many parameters stand before those of groups."""
    return _SHARED + 3 * len(precisions)


def shared_priors(
    profile: BoardProfile, precisions: Sequence[str], groups: Sequence[tuple[str, str]]
) -> tuple[Prior, ...]:
    """The parameters that kinds share; ``parts`` reads them in this order."""
    profiler_us = profile.profiler_overhead_s.value * 1e6
    priors = [
        Prior("q", "1", 1.5, 0.3),
        Prior("bw_act", "bytes/s", profile.cache_bandwidth_bytes_per_s.value, 0.7),
        Prior("bw_far", "bytes/s", profile.bandwidth_bytes_per_s.value, 0.7),
        Prior("bw_w", "bytes/s", 1.5 * profile.bandwidth_bytes_per_s.value, 0.7),
        Prior("cache", "bytes", profile.cache_bytes.value, 0.2),
        Prior("tail8", "blocks", 2.0, 0.7),
        Prior("tail1", "blocks", 1.0, 0.7),
        Prior("b", "positions", 1.0, 0.7),
        Prior("c0", "s", profile.network_overhead_s.value, 0.7),
        Prior("gap", "us", -profiler_us, 0.3 + 0.5 * profiler_us, linear=True),
    ]
    for precision in precisions:
        integer = precision == "int8"
        priors.append(Prior(f"a[{precision}]", "blocks", 1.0, 0.7))
        priors.append(Prior(f"tap[{precision}]", "macs", 1000.0 if integer else 32.0, 1.0))
        priors.append(Prior(f"out[{precision}]", "macs", 30.0 if integer else 4.0, 0.7))
    return tuple(priors)


def step(kind: str, light_step: float) -> float:
    """What a kernel counts among a network's steps; a view is a node like any other."""
    return 1.0 if kind in DENSE else light_step


def eta_prior(kind: str, precision: str) -> Prior:
    """The share of the peak that kernels of a group reach."""
    alike = "eta dense" if kind in DENSE else "eta other"
    shared = ((alike, 0.5), (f"{alike} {precision}", 0.3))
    value = _ETA.get(kind, _ETA_MOVEMENT)
    return Prior(f"eta[{kind},{precision}]", "1", value, 0.8, shared=shared)


def t0_prior(kind: str, precision: str, profile: BoardProfile) -> Prior:
    """What a kernel of a group costs before it works."""
    shared = (("t0 dense" if kind in DENSE else "t0 other", 0.25),)
    value = profile.kernel_overhead_s.value
    return Prior(f"t0[{kind},{precision}]", "s", value, 0.45, shared=shared)


@dataclass(frozen=True, slots=True)
class Features:
    """Works as arrays, one entry a kernel."""

    precision: npt.NDArray[np.intp]
    dense: npt.NDArray[np.bool_]
    depthwise_int8: npt.NDArray[np.bool_]
    rows: Array
    tiles: Array
    depth: Array
    gathers: Array
    outputs: Array
    simple: Array
    tail8: Array
    tail1: Array
    bytes_act: Array
    bytes_weights: Array


def features(works: Works, precisions: Sequence[str], priors: Sequence[Prior]) -> Features:
    """The arrays that ``parts`` needs."""
    rows, outputs, inputs, window, groups, width = works.dims.T
    width = np.where(width > 0, width, rows)
    int8 = works.each([precision == "int8" for _, precision in works.labels]) > 0
    dense = works.each([kind in DENSE for kind, _ in works.labels]) > 0
    depthwise = works.each([kind == "conv_depthwise" for kind, _ in works.labels]) > 0
    blocked = (works.each([kind in _BLOCKED_INPUTS for kind, _ in works.labels]) > 0) & ~int8
    channels = outputs * groups
    lanes = np.where(int8, _LANES * np.floor(channels / _LANES), _up(channels, _LANES))
    rest = channels % _LANES
    return Features(
        precision=works.each([precisions.index(precision) for _, precision in works.labels]),
        dense=dense,
        depthwise_int8=depthwise & int8,
        rows=rows * groups,
        tiles=np.where(int8, rows / _TILE, rows / width * np.ceil(width / _TILE)) * groups,
        depth=window * np.where(blocked, _up(inputs, _LANES), inputs),
        gathers=np.where(int8 & (groups == 1), np.sqrt(window), window) * (window > 1),
        outputs=outputs,
        simple=np.where(depthwise, rows * window * lanes, rows * outputs * groups * window / 2),
        tail8=rows * window * np.floor(rest / 8) * _LANES,
        tail1=rows * window * (rest % 8) * _LANES,
        bytes_act=works.bytes_in + works.bytes_out,
        bytes_weights=works.bytes_weights,
    )


def _up(values: Array, step: int) -> Array:
    return np.asarray(np.ceil(values / step) * step)


def parts(theta: Array, works: Features) -> tuple[Array, Array, Array]:
    """Effective macs, seconds of memory and seconds of overhead beyond ``t0`` of each kernel."""
    precisions = int(works.precision.max(initial=0)) + 1
    _, bw_act, bw_far, bw_w, cache, tail8, tail1, b = np.exp(theta[:8])
    per_precision = np.exp(theta[_SHARED : _SHARED + 3 * precisions]).reshape(-1, 3)
    a, tap, out = per_precision[works.precision].T
    blocks = np.ceil(works.outputs / _LANES)
    padded = (
        _LANES
        * (blocks + a * np.ceil(blocks / _BLOCKS_IN_REGISTERS))
        / (1 + a / _BLOCKS_IN_REGISTERS)
    )
    positions = (works.rows + b * works.tiles) / (1 + b / _TILE)
    macs = np.where(
        works.dense,
        positions * (padded * (works.depth + out) + works.gathers * tap),
        works.simple + works.depthwise_int8 * (tail8 * works.tail8 + tail1 * works.tail1),
    )
    beyond = 1 / (1 + (cache / np.maximum(works.bytes_act, 1.0)) ** _KNEE)
    memory = works.bytes_act * (1 / bw_act + beyond / bw_far) + works.bytes_weights / bw_w
    return macs, memory, np.zeros(len(macs))


def relative_bandwidth(theta: Array, works: Features) -> tuple[Indices, Array] | None:
    """None: all kinds share their bandwidths here."""
    return None
