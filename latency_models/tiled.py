"""How a GPU, or a CPU whose kernels are not known in detail, spends arithmetic and memory.

::

    m = (bytes_in + bytes_out) / (bw * rel_bw[kind]) + bytes_weights / bw_w
    t0 = t0[kind,prec] + groups * tg      (tg for grouped convolutions alone)

``effective_macs`` of a dense product of ``rows x depth`` with ``depth x n``, ``groups`` times::

    groups * rows * (1 + (r0 / rows)^p) * n_tiled * (1 + n0 / n_tiled) * (depth + k0)
    n_tiled = (n + s * 32 * ceil(n / 32)) / (1 + s)

Products are cut into tiles of 32 outputs, and a tile that is not full costs what a full one does:
the staircase, as steep as ``s`` says. Few outputs or a short sum use the data that was fetched
too seldom (``n0``, ``k0``), and few rows leave a part of the machine without work: ``r0`` rows
reach half of what many reach, and the power ``p`` says how slowly that fades. Everything else
moves bytes, each kind at a bandwidth ``rel_bw`` of its own relative to ``bw``.

Source: the staircase after ANNETTE (Wess et al., IEEE Access 9, 2021, eq. 3 and its soft form);
saturation in rows, outputs and depth is the usual model of a blocked matrix product (Goto and van
de Geijn, ACM TOMS 34(3), 2008): what is read once a block is shared by the block's other side.
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

_TILE = 32
# Parameters before the kinds' bandwidths.
_SHARED = ("q", "bw", "bw_w", "c0", "n0", "k0", "r0", "p", "s", "tg", "enqueue")
# Shares of the peak that products of a kind reach, where nothing is known of the board.
_ETA = {
    "conv_1x1": 0.5,
    "conv_3x3": 0.6,
    "conv_large": 0.6,
    "conv_grouped": 0.5,
    "conv_direct": 0.3,
    "conv_im2col": 0.25,
    "conv_transpose": 0.2,
    "conv_depthwise": 0.1,
    "gemm": 0.5,
    "matmul": 0.4,
}
# Kinds that run the same products.
_LIKE = {"gemm": "conv_1x1", "matmul": "conv_1x1", "conv_grouped": "conv_3x3"}
# What a group of a grouped convolution costs beyond its products, in launches of a kernel:
# libraries run a product for each.
_GROUP_SHARE = 1.0
# A view moves nothing; what the host spends on it is hidden or small.
_VIEW_S = 1e-7
# What a stream of bytes reaches of the datasheet's bandwidth.
_BANDWIDTH_SHARE = 0.75


def shared(precisions: Sequence[str]) -> int:
    """How many parameters stand before those of kinds and groups."""
    return len(_SHARED)


def shared_priors(
    profile: BoardProfile, precisions: Sequence[str], groups: Sequence[tuple[str, str]]
) -> tuple[Prior, ...]:
    """The parameters that kinds share; ``parts`` reads them in this order."""
    bandwidth = _BANDWIDTH_SHARE * profile.bandwidth_bytes_per_s.value
    enqueue = profile.enqueue_s
    priors = (
        Prior("q", "1", 1.0, 0.1),
        Prior("bw", "bytes/s", bandwidth, 0.2),
        Prior("bw_w", "bytes/s", bandwidth, 0.5),
        Prior("c0", "s", profile.network_overhead_s.value, 1.5),
        Prior("n0", "outputs", 8.0, 0.7),
        Prior("k0", "inputs", 8.0, 0.7),
        Prior("r0", "rows", 8.0, 0.7),
        Prior("p", "1", 0.7, 0.3),
        Prior("s", "1", 1.5, 0.5),
        Prior("tg", "s", _GROUP_SHARE * profile.kernel_overhead_s.value, 1.0),
        # Without a queue between host and device nothing waits for the host.
        Prior("enqueue", "s", 1e-9 if enqueue is None else enqueue.value, 0.5 if enqueue else 1e-3),
    )
    kinds = sorted({kind for kind, _ in groups})
    return priors + tuple(Prior(f"rel_bw[{kind}]", "1", 1.0, 0.7) for kind in kinds)


def step(kind: str, light_step: float) -> float:
    """What a kernel counts among those that are queued; a view is none."""
    del light_step
    return float(kind != "view")


def eta_prior(kind: str, precision: str) -> Prior:
    """The share of the peak that products of a group reach; unused where nothing is multiplied."""
    dense = (("eta dense", 0.7),) if kind in DENSE else ()
    like = _LIKE.get(kind, kind)
    shared = (*dense, (f"eta like {like}", 0.6), (f"eta {kind}", 0.3))
    return Prior(f"eta[{kind},{precision}]", "1", _ETA.get(kind, 0.5), 0.3, shared=shared)


def t0_prior(kind: str, precision: str, profile: BoardProfile) -> Prior:
    """What a kernel of a group costs before it works."""
    if kind == "view":
        return Prior(f"t0[{kind},{precision}]", "s", _VIEW_S, 0.5)
    moves = () if kind in DENSE else (("t0 other", 0.7),)
    shared = (("t0", 0.7), *moves, (f"t0 {kind}", 0.5))
    value = profile.kernel_overhead_s.value
    return Prior(f"t0[{kind},{precision}]", "s", value, 0.05, shared=shared)


@dataclass(frozen=True, slots=True)
class Features:
    """Works as arrays, one entry a kernel; ``kind`` is the place among the kinds' bandwidths."""

    kind: npt.NDArray[np.intp]
    dense: npt.NDArray[np.bool_]
    rows: Array
    outputs: Array
    depth: Array
    groups: Array
    split: Array
    macs: Array
    bytes_act: Array
    bytes_weights: Array


def features(works: Works, precisions: Sequence[str], priors: Sequence[Prior]) -> Features:
    """The arrays that ``parts`` needs."""
    kinds = [p.name[len("rel_bw[") : -1] for p in priors if p.name.startswith("rel_bw[")]
    rows, outputs, inputs, window, groups, _ = works.dims.T
    grouped = works.each([kind == "conv_grouped" for kind, _ in works.labels]) > 0
    return Features(
        kind=works.each([kinds.index(kind) for kind, _ in works.labels]),
        dense=works.each([kind in DENSE for kind, _ in works.labels]) > 0,
        rows=rows,
        outputs=outputs,
        depth=inputs * window,
        groups=groups,
        split=np.where(grouped, groups, 0.0),
        macs=works.macs,
        bytes_act=works.bytes_in + works.bytes_out,
        bytes_weights=works.bytes_weights,
    )


def parts(theta: Array, works: Features) -> tuple[Array, Array, Array]:
    """Effective macs, seconds of memory and seconds of overhead beyond ``t0`` of each kernel."""
    _, bw, bw_w, _, n0, k0, r0, p, s, tg, _ = np.exp(theta[: len(_SHARED)])
    relative = np.exp(theta[len(_SHARED) :])[works.kind]
    tiled = (works.outputs + s * _TILE * np.ceil(works.outputs / _TILE)) / (1 + s)
    filled = works.rows * (1 + (r0 / works.rows) ** p) * (tiled + n0) * (works.depth + k0)
    macs = np.where(works.dense, filled * works.groups, works.macs)
    memory = works.bytes_act / (bw * relative) + works.bytes_weights / bw_w
    return macs, memory, tg * works.split


def relative_bandwidth(theta: Array, works: Features) -> tuple[Indices, Array] | None:
    """Where each kernel's own bandwidth stands, and what share of its memory time goes with it."""
    bw, bw_w = np.exp(theta[1:3])
    place = len(_SHARED) + works.kind
    own = works.bytes_act / (bw * np.exp(theta[place]))
    return place, own / np.maximum(own + works.bytes_weights / bw_w, 1e-30)
