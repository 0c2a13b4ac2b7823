"""Timed calls of several engines in alternating blocks; raw samples only, no statistics.

Blocks alternate A B C A B C ... so that slow drift of the board meets every engine alike. The
first calls of a block run with the caches that the previous engine left and are dropped.
"""

import gc
from typing import NamedTuple

# A block of a very fast network ends here, so that results stay within one frame.
MAX_BLOCK_CALLS = 2000
# Warming up goes on past warmup_s until two windows of calls agree, but no longer than this factor.
SETTLE_FACTOR = 4
SETTLE_WINDOW = 5
SETTLE_TOLERANCE = 0.05

Plan = NamedTuple(
    "Plan",
    [("warmup_s", float), ("rounds", int), ("block_s", float), ("block_min", int), ("drop", int)],
)
Timed = NamedTuple("Timed", [("samples_s", list), ("rounds", list), ("warmup_s", list)])


def _call(run, clock):
    start = clock()
    run()
    return clock() - start


def _middle(values):
    return sorted(values)[len(values) // 2]


def settled(calls_s):
    """Whether the last two windows of calls have medians within five per cent."""
    if len(calls_s) < 2 * SETTLE_WINDOW:
        return False
    earlier = _middle(calls_s[-2 * SETTLE_WINDOW : -SETTLE_WINDOW])
    later = _middle(calls_s[-SETTLE_WINDOW:])
    return abs(earlier - later) <= SETTLE_TOLERANCE * earlier


def warm_up(run, warmup_s, clock):
    """Durations of the warm-up calls: at least two calls and ``warmup_s`` seconds, then bounded."""
    calls_s = []
    start = clock()
    while True:
        calls_s.append(_call(run, clock))
        elapsed_s = clock() - start
        if len(calls_s) < 2 or elapsed_s < warmup_s:
            continue
        if settled(calls_s) or elapsed_s >= SETTLE_FACTOR * warmup_s:
            return calls_s


def block(run, plan, clock):
    """Durations of one block's calls, without the dropped ones."""
    for _ in range(plan.drop):
        run()
    calls_s = []
    start = clock()
    while len(calls_s) < MAX_BLOCK_CALLS and (
        len(calls_s) < plan.block_min or clock() - start < plan.block_s
    ):
        calls_s.append(_call(run, clock))
    return calls_s


def interleave(runs, plan, clock, on_warm, on_round):
    """One ``Timed`` for each function in ``runs``, measured in alternating blocks.

    ``on_warm()`` is called once between warming up and the first block, ``on_round(n)`` after each
    round. The garbage collector rests during blocks.
    """
    timed = [Timed([], [], warm_up(run, plan.warmup_s, clock)) for run in runs]
    on_warm()
    for number in range(plan.rounds):
        for run, into in zip(runs, timed):  # noqa: B905 (strict= is Python 3.10)
            gc.collect()
            gc.disable()
            try:
                calls_s = block(run, plan, clock)
            finally:
                gc.enable()
            into.samples_s.extend(calls_s)
            into.rounds.extend([number] * len(calls_s))
        on_round(number + 1)
    return timed
