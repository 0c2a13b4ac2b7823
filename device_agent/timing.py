"""Timed calls of several engines in alternating blocks; raw samples only, no statistics.

Blocks alternate A B C A B C ... so that slow drift of the board meets every engine alike. The
first calls of a block run with the caches that the previous engine left and are dropped. Before
the blocks the engines may soak: run without a pause until the board is as warm as it gets.
"""

import gc
from typing import NamedTuple

# A block of a very fast network ends here, so that results stay within one frame.
MAX_BLOCK_CALLS = 2000
# Warming up goes on past warmup_s until two windows of calls agree, but no longer than this factor.
SETTLE_FACTOR = 4
SETTLE_WINDOW = 5
SETTLE_TOLERANCE = 0.05
# A window of soaking is long enough that reading the board's sensors after it is no rest, and a
# soak has at most this many, however long it is.
SOAK_WINDOW_S = 1.0
SOAK_WINDOWS = 300
# Samples of a soak that are kept, of all engines together: 2.5 MB of a frame's 16.
MAX_SOAK_SAMPLES = 100000

Plan = NamedTuple(
    "Plan",
    [
        ("warmup_s", float),
        ("rounds", int),
        ("block_s", float),
        ("block_min", int),
        ("drop", int),
        ("soak_s", float),
    ],
)
Plan.__new__.__defaults__ = (0.0,)
Timed = NamedTuple("Timed", [("samples_s", list), ("rounds", list), ("warmup_s", list)])


def _nothing():
    """What is done after a call of an engine that has no more to tell of it."""


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


def block(run, plan, clock, after=_nothing):
    """Durations of one block's calls, without the dropped ones; ``after()`` follows each."""
    for _ in range(plan.drop):
        run()
    calls_s = []
    start = clock()
    while len(calls_s) < MAX_BLOCK_CALLS and (
        len(calls_s) < plan.block_min or clock() - start < plan.block_s
    ):
        calls_s.append(_call(run, clock))
        after()
    return calls_s


def interleave(runs, plan, clock, on_warm, on_round, after=None):
    """One ``Timed`` for each function in ``runs``, measured in alternating blocks.

    Every other round goes backwards: what else the computer does can fall into step with rounds
    that are all alike, and would then slow the same function each time.
    ``on_warm()`` is called once between warming up and the first block, ``on_round(n)`` after each
    round, and of ``after``, one for each of ``runs``, its own after each call that counts, outside
    of what is timed. The garbage collector rests during rounds.
    """
    after = after or [_nothing] * len(runs)
    timed = [Timed([], [], warm_up(run, plan.warmup_s, clock)) for run in runs]
    on_warm()
    for number in range(plan.rounds):
        # Once a round: collecting takes milliseconds, in which caches and clocks would cool.
        gc.collect()
        gc.disable()
        try:
            turns = list(zip(runs, timed, after))  # noqa: B905 (strict= is Python 3.10)
            for run, into, then in turns[:: -1 if number % 2 else 1]:
                calls_s = block(run, plan, clock, then)
                into.samples_s.extend(calls_s)
                into.rounds.extend([number] * len(calls_s))
        finally:
            gc.enable()
        on_round(number + 1)
    return timed


class Soaked:
    """What is kept of one engine's soaking: a record of every window, and thinned samples.

    ``every`` doubles each time the samples reach their limit, and every second one is dropped:
    what stays is every ``every``-th call of the whole soak.
    """

    def __init__(self, limit):
        self._limit = limit
        self._calls = 0
        self._every = 1
        self._samples_s = []
        self._windows = []

    def add(self, calls_s, at_s, conditions):
        """Keep a window that ended ``at_s`` seconds after the soak began."""
        # Quantiles of two thousand calls are good to a per cent of themselves, and quick to get.
        ordered = sorted(calls_s[:: 1 + len(calls_s) // MAX_BLOCK_CALLS])
        self._windows.append(
            {
                "at_s": at_s,
                "n": len(calls_s),
                "median_s": ordered[len(ordered) // 2],
                "p10_s": ordered[len(ordered) // 10],
                "p90_s": ordered[(9 * len(ordered)) // 10],
                "conditions": conditions,
            }
        )
        for call_s in calls_s:
            if self._calls % self._every == 0:
                self._samples_s.append(call_s)
                if len(self._samples_s) > self._limit:
                    self._samples_s = self._samples_s[::2]
                    self._every *= 2
            self._calls += 1

    def wire(self):
        """The soak as it travels."""
        return {"every": self._every, "samples_s": self._samples_s, "windows": self._windows}


def soak(runs, soak_s, clock, look, on_window):
    """One ``Soaked`` for each function in ``runs``, which run in turn for ``soak_s`` seconds.

    Nothing rests between windows but for ``look()``, the board's conditions after each;
    ``on_window(s)`` is told how many seconds have passed.
    """
    window_s = max(SOAK_WINDOW_S, soak_s / SOAK_WINDOWS)
    soaked = [Soaked(MAX_SOAK_SAMPLES // len(runs)) for _ in runs]
    start = clock()
    while clock() - start < soak_s:
        for run, into in zip(runs, soaked):  # noqa: B905 (strict= is Python 3.10)
            calls_s = []
            begun = clock()
            gc.disable()
            try:
                while not calls_s or clock() - begun < window_s:
                    calls_s.append(_call(run, clock))
            finally:
                gc.enable()
            at_s = clock() - start
            into.add(calls_s, at_s, look())
            on_window(at_s)
    return soaked
