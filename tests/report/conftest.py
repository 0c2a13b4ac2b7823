"""A realistic result, invented: ten layers in seven groups, five candidates."""

from dataclasses import replace

import pytest

from harness.records import (
    AllocationProof,
    BoardFacts,
    Budget,
    BudgetVerdict,
    Candidate,
    FitResult,
    Front,
    FrontCandidate,
    FrontPoint,
    GroupAllocation,
    Interval,
    KernelPoint,
    Stage,
)

FACTS = BoardFacts(
    board="local",
    hostname="bench-3",
    machine="x86_64",
    cpu_model="Example Processor 3400 @ 2.60GHz",
    cores=2,
    memory_bytes=8_000_000_000,
    os="Linux 6.1.0",
    python="3.11.9",
    runtime="onnxruntime",
    runtime_version="1.23.2",
    providers=("CPUExecutionProvider",),
    int8="vnni",
    agent_hash="0123456789abcdef" * 4,
)

# Group, layers, channels, kept, precision.
GROUPS = (
    ("stem", ("stem.conv",), 32, 32, "fp32"),
    ("layer1.0.conv1", ("layer1.0.conv1",), 32, 24, "int8"),
    ("layer1", ("layer1.0.conv2", "layer1.1.conv2"), 32, 24, "int8"),
    ("layer2.0.conv1", ("layer2.0.conv1",), 64, 32, "int8"),
    ("layer2", ("layer2.0.conv2", "layer2.0.downsample", "layer2.1.conv2"), 64, 40, "int8"),
    ("layer3.0.conv1", ("layer3.0.conv1",), 128, 40, "int8"),
    ("fc", ("fc",), 10, 10, "int8"),
)
# Kernel, MACs, bytes moved in fp32, share of the baseline's time.
KERNELS = (
    ("stem.conv", 28_311_552, 5_250_000, 0.07),
    ("layer1.0.conv1", 301_989_888, 8_425_000, 0.17),
    ("layer1.0.conv2", 301_989_888, 8_425_000, 0.17),
    ("layer1.1.conv2", 301_989_888, 8_425_000, 0.16),
    ("layer2.0.conv1", 150_994_944, 6_365_000, 0.10),
    ("layer2.0.downsample", 16_777_216, 6_300_000, 0.03),
    ("layer2.0.conv2", 301_989_888, 4_341_000, 0.13),
    ("layer2.1.conv2", 75_497_472, 2_244_000, 0.06),
    ("layer3.0.conv1", 150_994_944, 1_868_000, 0.10),
    ("fc", 1_310_720, 52_000, 0.01),
)


def candidate(label, role, *, latency_ms, size, top1, predicted=None, round_number=0, **more):
    ratio = latency_ms / 2.86
    return Candidate(
        label=label,
        role=role,
        round=round_number,
        onnx_sha256=f"{abs(hash(label)) % 16**8:08x}" * 8,
        size_bytes=size,
        parameters=more.pop("parameters", size // 4),
        macs=more.pop("macs", round(1.63e9 * ratio)),
        latency_s=latency_ms / 1e3,
        latency_interval_s=Interval(0.988 * latency_ms / 1e3, 1.013 * latency_ms / 1e3, 0.95),
        latency_cv=0.021,
        n_samples=640,
        ratio=ratio,
        ratio_interval=Interval(0.991 * ratio, 1.008 * ratio, 0.95),
        top1=top1,
        board_agreement=1.0 if role == "baseline" else 0.984,
        host_agreement=1.0,
        n_board_images=256,
        predicted_latency_s=None if predicted is None else predicted / 1e3,
        predicted_interval_s=None
        if predicted is None
        else Interval(0.91 * predicted / 1e3, 1.12 * predicted / 1e3, 0.9),
        predicted_size_bytes=None if predicted is None else round(0.985 * size),
        predicted_loss=None if predicted is None else 0.0123,
        **more,
    )


def kernel_points():
    points = []
    for i, (name, macs, moved, share) in enumerate(KERNELS):
        points.append(
            KernelPoint(
                candidate="baseline",
                name=name,
                kind="conv3x3",
                precision="fp32",
                macs=macs,
                moved_bytes=moved,
                predicted_s=share * 2.86e-3 * (0.94 + 0.02 * i),
                measured_s=share * 2.86e-3,
            )
        )
        group = next(g for g in GROUPS if name in g[1])
        keep, int8 = group[3] / group[2], group[4] == "int8"
        points.append(
            KernelPoint(
                candidate="joint 3",
                name=name,
                kind="conv3x3",
                precision=group[4],
                macs=round(macs * keep),
                moved_bytes=round(moved * keep * (0.3 if int8 else 1)),
                predicted_s=share * keep * 2.86e-3 * (0.33 if int8 else 1),
                measured_s=share * keep * 2.86e-3 * ((0.30 + 0.015 * i) if int8 else 1),
            )
        )
    return tuple(points)


def verdict(quantity, limit, value, verdict, *, relative, text, interval=None, nearest=None):
    return BudgetVerdict(
        budget=Budget(quantity=quantity, limit=limit, relative=relative, text=text),
        value=value,
        interval=interval,
        met=verdict == "meets",
        verdict=verdict,
        nearest=nearest,
    )


def judged(latency, size, drop, *verdicts):
    """The three budgets of the result, judged on another network."""
    return (
        verdict("latency", 0.22, latency, verdicts[0], relative=True, text="22%"),
        verdict("size", 0.2, size, verdicts[1], relative=True, text="20%"),
        verdict("accuracy_drop", 1.0, drop, verdicts[2], relative=False, text="1 points"),
    )


PROOF = AllocationProof(
    method="coupled",
    options=(2, 8, 8, 14, 14, 14, 2),
    objective=0.0123,
    bound=0.0122999,
    gap=7e-6,
    # 0.00205 for 50 µs, and 0.0001 for 10 kB
    prices={"latency": 41.0, "size": 1e-8},
    solves=3,
    wall_s=1.24,
)


def front_point(approach, limit_ms, latency_ms, loss):
    return FrontPoint(
        approach=approach,
        gap=7e-6 if approach == "coupled" else None,
        limit_s=limit_ms / 1e3,
        latency_s=latency_ms / 1e3,
        size_bytes=3e5,
        loss=loss,
        fits=latency_ms <= limit_ms,
    )


def make_front():
    """Three limits, and the full network, which loses nothing."""
    return Front(
        points=(
            front_point("coupled", 0.4, 0.399, 0.05),
            front_point("coupled", 0.6, 0.598, 0.013),
            front_point("coupled", 1.2, 1.19, 0.002),
            front_point("coupled", 2.86, 2.86, 0.0),
            front_point("separable", 0.4, 0.47, 0.041),
            front_point("separable", 0.6, 0.59, 0.0143),
            front_point("greedy", 0.4, 0.395, 0.06),
            front_point("greedy", 0.6, 0.6, 0.015),
        ),
        candidates=(
            FrontCandidate(label="joint 1", latency_s=0.72e-3, loss=0.0101),
            FrontCandidate(label="joint 3", latency_s=0.602e-3, loss=0.0129),
        ),
        limit_s=0.22 * 2.86e-3,
        size_limit_bytes=0.2 * 1_650_000,
    )


def make_result():
    allocation = tuple(
        GroupAllocation(group=g, layers=ls, channels=n, kept=k, precision=p)
        for g, ls, n, k, p in GROUPS
    )
    baseline = candidate("baseline", "baseline", latency_ms=2.86, size=1_650_000, top1=0.9312)
    joint = {"int8_layers": 9, "int8_layers_real": 9, "allocation": allocation}
    rounds = (
        candidate(
            "joint 1",
            "joint",
            latency_ms=0.74,
            size=318_000,
            top1=0.9281,
            predicted=0.61,
            round_number=1,
            **joint,
        ),
        candidate(
            "joint 2",
            "joint",
            latency_ms=0.65,
            size=296_000,
            top1=0.9262,
            predicted=0.62,
            round_number=2,
            **joint,
        ),
        candidate(
            "joint 3",
            "joint",
            latency_ms=0.612,
            size=287_000,
            top1=0.9254,
            predicted=0.605,
            round_number=3,
            **joint,
        ),
    )
    result = rounds[-1]
    return FitResult(
        boardfit_version="0.1.0",
        created_at="2026-03-01T09:30:00+00:00",
        network="data/demo/network.py:network",
        board=FACTS,
        baseline=baseline,
        result=result,
        candidates=rounds,
        alternatives={
            "int8_only": candidate(
                "int8 only",
                "int8_only",
                latency_ms=0.98,
                size=447_000,
                top1=0.9305,
                predicted=0.95,
                int8_layers=10,
                int8_layers_real=10,
            ),
            "prune_only": candidate(
                "prune only",
                "prune_only",
                latency_ms=0.625,
                size=301_000,
                top1=0.8914,
                predicted=0.66,
            ),
        },
        alternative_budgets={
            "int8_only": judged(0.343, 0.271, 0.07, "does not meet", "does not meet", "meets"),
            "prune_only": judged(0.219, 0.182, 3.98, "cannot tell yet", "meets", "does not meet"),
        },
        budgets=(
            verdict(
                "latency",
                0.22,
                result.ratio,
                "meets",
                relative=True,
                text="22%",
                interval=result.ratio_interval,
            ),
            verdict("size", 0.2, 287_000 / 1_650_000, "meets", relative=True, text="20%"),
            verdict("accuracy_drop", 1.0, 0.58, "meets", relative=False, text="1 points"),
        ),
        verdict="meets",
        explanation="",
        kernels=kernel_points(),
        peak_macs_per_s={"fp32": 8.6e11, "int8": 2.4e12},
        bandwidth_bytes_per_s=2.1e10,
        stages=(
            Stage(name="baseline", wall_s=21.0, detail="2.860 ms, 1.650 MB, top-1 93.12 %"),
            Stage(name="calibrate", wall_s=174.0),
            Stage(name="sensitivity", wall_s=38.0, detail="83 options in 7 groups"),
            Stage(name="allocate joint 1", wall_s=0.8),
            Stage(name="build joint 1", wall_s=92.0),
            Stage(name="measure joint 1", wall_s=19.0),
            Stage(name="build int8 only", wall_s=85.0),
            Stage(name="build prune only", wall_s=88.0),
            Stage(name="final measurement", wall_s=41.0),
        ),
        warnings=(
            "joint 3: the load of other processes was 0.9 before the measurement; stop them",
        ),
        proof=PROOF,
        front=make_front(),
    )


@pytest.fixture
def result():
    return make_result()


@pytest.fixture
def infeasible(result):
    """No variant at all: the budget is out of reach."""
    return replace(
        result,
        result=None,
        candidates=(),
        alternatives={},
        verdict="does not meet",
        explanation=(
            "No allocation reaches 5 % of the baseline's latency with 8 of 32 channels left in "
            "every group and int8 everywhere: t0, the runtime's cost of calling ten kernels, binds."
        ),
        budgets=(
            verdict(
                "latency", 0.05, None, "does not meet", relative=True, text="5%", nearest=0.118
            ),
            verdict(
                "size", 100_000, None, "does not meet", relative=False, text="100kB", nearest=6.2e4
            ),
        ),
        kernels=(),
        warnings=(),
        proof=None,
        front=None,
        binding={"latency": ("layer1.0.conv1", "layer1")},
    )


NASTY = '<script>alert("1")</script>\'&[bold]'


@pytest.fixture
def nasty(result):
    """Names that mean something to HTML, to plotly and to rich."""
    best = replace(
        result.result,
        label=NASTY,
        notes=(NASTY,),
        allocation=tuple(
            replace(g, group=NASTY, layers=(NASTY,)) for g in result.result.allocation
        ),
    )
    return replace(
        result,
        network=NASTY,
        result=best,
        front=replace(
            result.front, candidates=(FrontCandidate(label=NASTY, latency_s=6e-4, loss=0.01),)
        ),
        binding={"latency": (NASTY,)},
        board=replace(result.board, board=NASTY, cpu_model=NASTY),
        warnings=(NASTY,),
        explanation=NASTY,
        kernels=tuple(replace(k, name=NASTY, candidate=NASTY) for k in result.kernels),
        stages=tuple(replace(s, name=NASTY, detail=NASTY) for s in result.stages),
        alternatives={NASTY: replace(best, role="int8_only", label="other")},
    )
