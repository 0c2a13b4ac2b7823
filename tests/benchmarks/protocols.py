"""How published measurements are split into what is calibrated on and what is predicted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tests.benchmarks.published import Item, Published

SEEDS = range(5)

Split = tuple[list[int], list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How a data set is split, and what others reach: ``baseline`` and ``target`` are for reading.

    ``splits`` gives, by seed, (fit, test) index lists. ``unlike``: test items belong to no group
    that was fitted to. ``judged`` says which predictions count.
    """

    key: str
    data: str
    splits: Callable[[Published, int], Iterator[Split]]
    seeds: Sequence[int]
    baseline: str
    target: str
    unlike: bool = False
    judged: Callable[[Item], bool] = lambda _: True


def _sides(data: Published, chosen: Callable[[Item], bool]) -> Split:
    fit = [i for i, item in enumerate(data.items) if chosen(item)]
    return fit, sorted(set(range(len(data.items))) - set(fit))


def at_random(count: int) -> Callable[[Published, int], Iterator[Split]]:
    """At least ``count`` items to fit, twins together."""

    def splits(data: Published, seed: int) -> Iterator[Split]:
        twins = sorted({item.twin for item in data.items})
        fit: set[str] = set()
        taken = 0
        for index in np.random.default_rng(seed).permutation(len(twins)):
            if taken >= count:
                break
            fit.add(twins[index])
            taken += sum(item.twin == twins[index] for item in data.items)
        yield _sides(data, lambda item: item.twin in fit)

    return splits


def leave_out(key: Callable[[Item], str]) -> Callable[[Published, int], Iterator[Split]]:
    """One group of items after the other is predicted from the rest."""

    def splits(data: Published, _seed: int) -> Iterator[Split]:
        for name in sorted({key(item) for item in data.items}):
            yield _sides(data, lambda item, name=name: key(item) != name)

    return splits


def folds(count: int) -> Callable[[Published, int], Iterator[Split]]:
    """``count`` folds, twins together."""

    def splits(data: Published, seed: int) -> Iterator[Split]:
        twins = sorted({item.twin for item in data.items})
        order = np.random.default_rng(seed).permutation(len(twins))
        for fold in range(count):
            out = {twins[index] for index in order[fold::count]}
            yield _sides(data, lambda item, out=out: item.twin not in out)

    return splits


def by_label(label: str, values: Sequence[str]) -> Callable[[Published, int], Iterator[Split]]:
    """Items with one of ``values`` are fitted, the others predicted."""

    def splits(data: Published, _seed: int) -> Iterator[Split]:
        yield _sides(data, lambda item: item.labels[label] in values)

    return splits


def _structure(item: Item) -> str:
    """The architecture: vgg and vgg_bn are the same kernels once batch norm is folded."""
    return item.name.split("__")[0].removesuffix("_bn")


PROTOCOLS = (
    Protocol(
        key="nano_trt_fp16_loo",
        data="torchvision_trt_fp16",
        splits=leave_out(_structure),
        seeds=[0],
        baseline="8.6-9.2 %",
        target="5 %",
    ),
    Protocol(
        key="nano_trt_fp16_family",
        data="torchvision_trt_fp16",
        splits=leave_out(lambda item: item.group),
        seeds=[0],
        baseline="18-21 %",
        target="10 %",
        unlike=True,
    ),
    Protocol(
        key="nano_ort_gpu_50",
        data="timm_ort_fp32_gpu",
        splits=at_random(50),
        seeds=SEEDS,
        baseline="12.4 %, 59 %, 0.976",
        target="7 %, 78 %, 0.988",
    ),
    Protocol(
        key="nano_ort_cpu_50",
        data="timm_ort_fp32_cpu",
        splits=at_random(50),
        seeds=SEEDS,
        baseline="7.4 %, 80 %, 0.991",
        target="4 %, 93 %, 0.995",
    ),
    Protocol(
        key="nano_ort_gpu_20",
        data="timm_ort_fp32_gpu",
        splits=at_random(20),
        seeds=SEEDS,
        baseline="22.9 %, 52 %",
        target="11 %, 62 %",
    ),
    Protocol(
        key="nb201_fp32_100",
        data="nasbench201_fp32",
        splits=at_random(100),
        seeds=SEEDS,
        baseline="4.2 %, 93.4 %, 0.991",
        target="94.5 %, 0.992",
    ),
    Protocol(
        key="nb201_fp16_100",
        data="nasbench201_fp16",
        splits=at_random(100),
        seeds=SEEDS,
        baseline="5.8 %, 85.6 %, 0.949",
        target="93 %, 0.97",
    ),
    Protocol(
        key="tx2_power_modes",
        data="tx2",
        splits=by_label("power_mode", ["maxn"]),
        seeds=[0],
        baseline="8.6 % (4.9 %)",
        target="5 %",
    ),
    Protocol(
        key="tx2_widths",
        data="tx2",
        splits=by_label("width_percent", ["100.0", "25.0"]),
        seeds=[0],
        baseline="9.9 %",
        target="5 %",
        unlike=True,
    ),
    Protocol(
        key="orin_layers_loo",
        data="orin",
        splits=leave_out(lambda item: item.twin),
        seeds=[0],
        baseline="7.4 % (twins left in)",
        target="6 %",
    ),
    Protocol(
        key="xavier_layers_cv",
        data="xavier",
        splits=folds(10),
        seeds=SEEDS,
        baseline="none",
        target="10 %",
        judged=lambda item: item.labels["reformat"] == "no",
    ),
)
