"""Simulated engines: deterministic times from a blob's content; no time passes unless asked.

A blob that is a JSON object sets ``latency_s`` and, for tests of what goes wrong, ``sleep_s``
(really sleep before each call), ``heat_share`` and ``heat_s`` (slower by that share in the end,
with that time constant), ``print`` (to file descriptor 1, as native libraries do),
``signal`` (kill the worker) and ``fail`` (raise). Any other content is simulated by its hash.
"""

import hashlib
import json
import math
import os
import shutil
import time

RUNTIME = "fake"
# One per cent of ripple with a period that no block length shares.
RIPPLE = (0.0, 0.004, -0.003, 0.01, -0.006, 0.002, -0.01)


class SimulatedClock:
    """A clock that only engines advance."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        """Simulated seconds."""
        return self.now_s


clock = SimulatedClock()


def version():
    """The runtime's version and its providers."""
    return "1", []


def _settings(path):
    with open(path, "rb") as stream:
        content = stream.read()
    try:
        found = json.loads(content.decode())
    except ValueError:
        found = None
    if isinstance(found, dict):
        return found
    # 1 to 2 ms, by the first two bytes of the content's hash.
    digest = hashlib.sha256(content).digest()
    return {"latency_s": 1e-3 * (1.0 + int.from_bytes(digest[:2], "big") / 65536.0)}


class Engine:
    """A simulated engine at batch 1."""

    batch = 1

    def __init__(self, path):
        self._settings = _settings(path)
        self._calls = 0
        if "fail" in self._settings:
            raise RuntimeError(self._settings["fail"])

    def run(self):
        """One simulated inference."""
        if "print" in self._settings:
            os.write(1, self._settings["print"].encode())
        if "signal" in self._settings:
            os.kill(os.getpid(), self._settings["signal"])
        time.sleep(self._settings.get("sleep_s", 0.0))
        ripple = RIPPLE[self._calls % len(RIPPLE)]
        heat = self._settings.get("heat_share", 0.0)
        heat *= -math.expm1(-clock.now_s / self._settings.get("heat_s", 1.0))
        clock.now_s += self._settings.get("latency_s", 1e-3) * (1.0 + ripple) * (1.0 + heat)
        self._calls += 1

    def close(self):
        """Nothing to free."""


def load(path, threads, seed):
    """A simulated engine; threads and seed change nothing."""
    del threads, seed
    return Engine(path)


def profile(path, threads, seed, runs, folder):
    """One kernel that takes the whole time."""
    del threads, seed, runs, folder
    latency_s = Engine(path)._settings.get("latency_s", 1e-3)
    one = {"name": "all", "op": "Fake", "node": "", "latency_s": latency_s, "provider": "fake"}
    return {"kernels": [one]}


def infer(path, threads, inputs_path, input_name, outputs_path, progress):
    """Writes the inputs out again."""
    del path, threads, input_name
    shutil.copyfile(inputs_path, outputs_path)
    progress(1, 1)
