"""Plans of an invented network: eight layers, and strategies that nobody built."""

from dataclasses import replace

from harness.records import (
    Estimate,
    LayerCost,
    Met,
    Nearest,
    Plan,
    PlannedStrategy,
    Predicted,
    Requirement,
    Requirements,
    Strategy,
    Verification,
    Verified,
)

WIDTHS = (3, 32, 32, 64, 64, 128, 128, 128, 10)
SIDES = (32, 32, 32, 16, 16, 8, 8, 1)
LATENCY = Requirement(quantity="latency", limit=0.040, text="40ms")
SIZE = Requirement(quantity="size", limit=3e6, text="3MB")
DROP = Requirement(quantity="accuracy_drop", limit=1.0, text="1")
LIMITS = (LATENCY, SIZE, DROP)


def layers(keep=1.0, precision="fp32", seconds=0.0):
    """A chain of convolutions that keep a share of their channels, and a classifier."""
    widths = [WIDTHS[0], *(round(keep * w) for w in WIDTHS[1:-1]), WIDTHS[-1]]
    size = {"fp32": 4, "fp16": 2, "int8": 1}[precision]
    found = []
    for index, side in enumerate(SIDES):
        entering, leaving = widths[index], widths[index + 1]
        window = 1 if side == 1 else 9
        macs = window * entering * leaving * side * side
        found.append(
            LayerCost(
                layer="fc" if side == 1 else f"stage{index}.conv",
                kind="gemm" if side == 1 else "conv_3x3",
                precision=precision,
                channels_in=entering,
                channels_out=leaving,
                parameters=window * entering * leaving + leaving,
                macs=macs,
                weight_bytes=size * window * entering * leaving + 4 * leaving,
                read_bytes=size * entering * side * side,
                written_bytes=size * leaving * side * side,
                latency_s=seconds * macs / 1e8 if seconds else None,
            )
        )
    return tuple(found)


def predicted(keep=1.0, precision="fp32", seconds=0.06, drop=None, width=0.1):
    """What a variant is predicted to cost; ``drop`` in points, ``seconds`` 0: no latency."""
    rows = layers(keep, precision, seconds)
    parameters = sum(row.parameters for row in rows)
    weights = sum(row.weight_bytes for row in rows)
    whole = sum(row.latency_s or 0.0 for row in rows)
    return Predicted(
        size_bytes=Estimate(
            value=8.0 * weights + 4000, low=7.92 * weights, high=8.16 * weights + 4000
        ),
        parameters=parameters,
        macs=sum(row.macs for row in rows),
        weight_bytes=weights,
        moved_bytes=weights + sum(row.read_bytes + row.written_bytes for row in rows),
        peak_activation_bytes=Estimate.exactly(
            float(max(row.read_bytes + row.written_bytes for row in rows))
        ),
        latency_s=Estimate(value=whole, low=whole / (1 + width), high=whole * (1 + width))
        if seconds
        else None,
        accuracy_drop=None
        if drop is None
        else Estimate(value=drop, low=drop - 0.2 - drop / 4, high=drop + 0.3 + drop / 2),
        layers=rows,
    )


def verdict_of(low, high, limit):
    if high <= limit:
        return "meets"
    return "does not meet" if low > limit else "cannot tell"


def mets(found, limits):
    rows = []
    for one in limits:
        estimate = {
            "latency": found.latency_s,
            "size": found.size_bytes,
            "accuracy_drop": found.accuracy_drop,
        }[one.quantity]
        if estimate is None:
            rows.append(Met(requirement=one, verdict="cannot tell"))
            continue
        ends = estimate.value, estimate.low, estimate.high
        rows.append(
            Met(
                requirement=one,
                verdict=verdict_of(*ends[1:], one.limit),
                value=ends[0],
                low=ends[1],
                high=ends[2],
            )
        )
    return tuple(rows)


def strategy(name, found, limits=LIMITS, *, front=False, sentences=None):
    """A planned strategy with its verdicts by the rule of the records."""
    verdicts = mets(found, limits)
    words = [met.verdict for met in verdicts]
    worst = next((w for w in ("does not meet", "cannot tell") if w in words), "meets")
    return PlannedStrategy(
        name=name,
        methods=("prune", "quantize"),
        strategy=Strategy(label=name, methods=("prune", "quantize"), entries=(), epochs=4, seed=0),
        predicted=found,
        verdicts=verdicts,
        verdict=worst,
        sentences=sentences
        or (
            f"It prunes 5 of 8 groups and distils what is left for 4 epochs ({name}).",
            "It meets what is asked, of which latency binds; how much it loses is uncertain.",
        ),
        on_front=front,
    )


def plan(*, accuracy=True, latency=True, limits=LIMITS, **more):
    """A plan of six strategies, the best first."""
    seconds = 0.06 if latency else 0.0

    def make(name, keep, precision, speed, drop, **options):
        found = predicted(keep, precision, seconds * speed, drop if accuracy else None)
        return strategy(name, found, limits, **options)

    rows = [
        make("prune and int8, 40 ms", 0.75, "int8", 0.9, 0.35, front=True),
        make("int8 everywhere", 1.0, "int8", 0.45, 0.1, front=True),
        make("prune to 50 %", 0.5, "fp32", 1.0, 1.6),
        make("prune by allocation", 0.625, "fp32", 1.0, 0.8, front=True),
        make("prune to 25 % and int8", 0.25, "int8", 0.8, 6.0, front=True),
        make("fp32 student", 0.7, "fp32", 1.0, 2.5),
    ]
    rank = {"meets": 0, "cannot tell": 1, "does not meet": 2}
    rows.sort(key=lambda one: rank[one.verdict])
    base = predicted(1.0, "fp32", seconds)
    return Plan(
        network="demo.py:factory",
        board="jetson-nano",
        requirements=Requirements(limits=limits),
        baseline=replace(base, latency_source="saved model"),
        strategies=tuple(rows),
        front=tuple(one.name for one in rows if one.on_front),
        wall_s=3.25,
        **more,
    )


def hopeless():
    """A plan in which nothing meets a latency of a microsecond."""
    least = Requirement(quantity="latency", limit=1e-6, text="1us")
    found = plan(limits=(least, SIZE))
    nearest = Nearest(
        quantity="latency", asked=1e-6, reachable=0.0123, binding=("stage1.conv", "stage3.conv")
    )
    return replace(found, nearest=(nearest,))


def verification():
    """Two columns of one strategy, one of which its interval did not hold."""
    return Verification(
        rows=(
            Verified(
                name="int8 everywhere",
                column="latency_s",
                predicted=Estimate(value=0.030, low=0.027, high=0.033),
                actual=0.040,
            ),
            Verified(
                name="int8 everywhere",
                column="parameters",
                predicted=Estimate.exactly(431_434),
                actual=431_434,
            ),
        ),
        recalibration="The loss predictor was recalibrated from 1 built strategy.",
    )
