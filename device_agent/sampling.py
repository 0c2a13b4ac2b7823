"""Clocks, temperature, power and memory while a job runs, looked at by the process that waits.

The measuring process is never disturbed: its parent, which only waits for its end, looks now and
then and appends a line to the job's folder; the measuring process reads the lines at the end.
"""

import contextlib
import json
import os
import select
import time

from . import board as knobs
from . import controls, telemetry

FILE = "telemetry.jsonl"
PERIOD_S = 1.0
# The first look: short runs have one too, and warming up has begun by then.
FIRST_S = 0.5
# A result stays within one frame; later looks are half as often, and so on.
MAX_SAMPLES = 2000
# Whoever is measured goes first.
NICE = 5


class Sampler:
    """Appends a line to the job's ``telemetry.jsonl`` each time that ``take`` is called.

    With a period of 0 it only writes down the settings in force at the start.
    """

    def __init__(self, folder, period_s=PERIOD_S, root=telemetry.ROOT):
        self._path = os.path.join(folder, FILE)
        self._root = root
        self._period_s = period_s
        self._taken = 0
        self._write({"period_s": period_s, "in_force": controls.summary(knobs.Board(root))})
        self._count = telemetry.throttle_count(root)
        self._start_s, self._start_cpu_s = time.monotonic(), time.process_time()
        first_s = min(FIRST_S, period_s) if period_s > 0 else float("inf")
        self._due_s = self._start_s + first_s

    def due_s(self):
        """Seconds until the next look."""
        return max(0.0, self._due_s - time.monotonic())

    def take(self):
        """Look, and write it down with what looking has cost so far."""
        now_s = time.monotonic()
        found = telemetry.conditions(self._root, self._count)
        self._count = telemetry.throttle_count(self._root)
        clocks = found["cpu_clock_hz"]
        names = ("gpu_clock_hz", "temp_c", "power_w", "throttled", "free_memory_bytes")
        sample = {name: found[name] for name in names}
        sample["at_s"] = now_s - self._start_s
        sample["cpu_clock_hz"] = sum(clocks) / len(clocks) if clocks else None
        self._taken += 1
        if self._taken % MAX_SAMPLES == 0:
            self._period_s *= 2
        # Not from the last one: a board that was held up does not catch up with many at once.
        self._due_s = now_s + self._period_s
        cost = {
            "cpu_s": time.process_time() - self._start_cpu_s,
            "wall_s": time.monotonic() - self._start_s,
        }
        self._write(dict(cost, sample=sample))

    def _write(self, content):
        # A full disk must not end a measurement that needs none of it.
        with contextlib.suppress(OSError), open(self._path, "a") as stream:
            stream.write(json.dumps(content) + "\n")


def watch(ended, timeout_s, sampler):
    """Whether ``ended`` became readable within ``timeout_s``; the ``sampler``, if any, looks on."""
    deadline_s = time.monotonic() + timeout_s
    if sampler is not None:
        os.nice(NICE)
    with telemetry.remembered_paths():
        while True:
            left_s = max(0.0, deadline_s - time.monotonic())
            wait_s = left_s if sampler is None else min(left_s, sampler.due_s())
            if select.select([ended], [], [], wait_s)[0]:
                return True
            if time.monotonic() >= deadline_s:
                return False
            if sampler is not None:
                sampler.take()


def collect(folder):
    """A result's ``in_force`` and ``telemetry``, from what was written; None: not known."""
    lines = []
    for line in (telemetry.read_text(os.path.join(folder, FILE)) or "").splitlines():
        with contextlib.suppress(ValueError):  # the last one may be half written
            lines.append(json.loads(line))
    if not lines:
        return {"in_force": None, "telemetry": None}
    first, looks = lines[0], lines[1:]
    if first["period_s"] == 0:
        return {"in_force": first["in_force"], "telemetry": None}
    last = looks[-1] if looks else {"cpu_s": 0.0, "wall_s": 0.0}
    return {
        "in_force": first["in_force"],
        "telemetry": {
            "period_s": first["period_s"],
            "cost_share": last["cpu_s"] / last["wall_s"] if last["wall_s"] > 0 else 0.0,
            "samples": [look["sample"] for look in looks],
        },
    }
