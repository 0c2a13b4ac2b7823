"""Engines of TensorRT: looked up in the cache, or built in a child, again with less if it died.

An engine fits one network, one version, one chip and one set of options, and what was fastest for
it was found in one power mode: all of that is its key. ``engines/KEY.json`` in the cache folder
says which blob it is; the timing cache, one for each version and chip, lies beside it.
"""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys

from . import blobs, files, telemetry, trt_builder

FOLDER = "engines"
# A change of what goes into the key, or of what a file holds, begins anew.
SCHEMA = 1
OPTIONS = {
    # Flags that allow fp16 and int8; fp32 is always allowed.
    "precisions": [],
    # Node name to fp32, fp16 or int8, and whether that is obeyed or preferred.
    "layers": {},
    "constraints": None,
    "workspace_bytes": None,
    # "weak", "strong"; None: weak where the version has it.
    "typing": None,
    "timing_cache": True,
    # Another build of the same: the number keeps them apart, and no timing cache makes them alike.
    "rebuild": 0,
}
# Enough for every tactic of the networks that a Nano runs, and a sixteenth of its memory.
WORKSPACE_BYTES = 256 << 20
# trtexec's default up to 8.2; with less many convolutions have no fast tactic.
SMALLEST_WORKSPACE_BYTES = 16 << 20
SMALLER = 4
ERRORS = {
    "NetworkRefused": trt_builder.NetworkRefused,
    "BuildFailed": trt_builder.BuildFailed,
    "OutOfDeviceMemory": trt_builder.OutOfDeviceMemory,
}


class BuildDied(Exception):
    """Building ended in a signal even with the smallest workspace; the message says what is left
    to do."""


def options_of(given):
    """All options, with defaults; ``ValueError`` names one that there is not."""
    unknown = sorted(set(given) - set(OPTIONS))
    if unknown:
        known = ", ".join(sorted(OPTIONS))
        raise ValueError("there is no build option %s; there are %s" % (unknown[0], known))
    found = dict(OPTIONS, **given)
    found["precisions"] = sorted(set(found["precisions"]) - {"fp32"})
    return found


def key_of(network, flavour, version, compute, power_mode, options):
    """SHA-256 of all that an engine depends on."""
    parts = {
        "schema": SCHEMA,
        "network": network,
        "runtime": [flavour, version],
        "compute": compute,
        "power_mode": power_mode,
        "options": options,
    }
    return _digest(parts)


def _digest(content):
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Place:
    """Where an engine is built: the runtime, the chip and the power mode."""

    def __init__(self, cache_dir, flavour, version, compute, power_mode):
        self.cache_dir, self.flavour, self.version = cache_dir, flavour, version
        self.compute, self.power_mode = compute, power_mode

    def timing_cache(self):
        """Path of the timing cache, which only the same version on the same chip may read."""
        name = _digest([SCHEMA, self.flavour, self.version, self.compute, self.power_mode])
        return os.path.join(self.cache_dir, FOLDER, "timing-%s.cache" % name[:32])

    def record(self, key):
        """Path of what is known of an engine."""
        return os.path.join(self.cache_dir, FOLDER, key + ".json")


def engine(place, network, options, folder, tell):
    """What is known of a network's engine, which is built if it is not there yet.

    ``network`` is the ONNX file's hash, ``folder`` the job's, ``tell(sentence)`` is told when
    something is tried again. ``engine`` in the answer is the hash of the serialised engine's blob.
    """
    options = options_of(options)
    key = key_of(network, place.flavour, place.version, place.compute, place.power_mode, options)
    known = files.read_object(place.record(key))
    if known.get("engine") and blobs.has(place.cache_dir, known["engine"]):
        return dict(known, cached=True)
    os.makedirs(os.path.join(place.cache_dir, FOLDER), exist_ok=True)
    built = _build(place, network, options, folder, tell)
    found = {"key": key, "engine": built["engine"], "size_bytes": built["size_bytes"]}
    found.update(built["facts"], attempts=built["attempts"], timing_cache=built["timing_cache"])
    found["power_mode"], found["compute"] = place.power_mode, place.compute
    files.write_json(place.record(key), found)
    return dict(found, cached=False)


def _build(place, network, options, folder, tell):
    """Tries with less and less workspace; what was tried, and what came of it."""
    workspace_bytes, attempts = options["workspace_bytes"] or WORKSPACE_BYTES, []
    while True:
        before = telemetry.conditions()["free_memory_bytes"]
        answer, death = _attempt(place, network, options, workspace_bytes, folder)
        attempt = {"workspace_bytes": workspace_bytes, "free_memory_bytes": before}
        attempts.append(dict(attempt, ended=death or answer.get("message", "built")))
        if "facts" in answer:
            return dict(_keep(place, folder), facts=answer["facts"], attempts=attempts)
        if death is None and answer["error"] != "OutOfDeviceMemory":
            raise ERRORS.get(answer["error"], ValueError)(answer["message"])
        if workspace_bytes <= SMALLEST_WORKSPACE_BYTES:
            raise BuildDied(_obituary(attempts))
        workspace_bytes = max(SMALLEST_WORKSPACE_BYTES, workspace_bytes // SMALLER)
        tell("building again with a workspace of %d MiB" % (workspace_bytes >> 20))


def _attempt(place, network, options, workspace_bytes, folder):
    """The builder's answer, or {} and how it died."""
    paths = {name: os.path.join(folder, name) for name in ("plan", "new_cache", "answer")}
    for path in paths.values():
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)
    with_cache = options["timing_cache"] and not options["rebuild"]
    request = dict(
        paths,
        flavour=place.flavour,
        network=blobs.require(place.cache_dir, network),
        options=options,
        workspace_bytes=workspace_bytes,
        timing_cache=place.timing_cache() if with_cache else None,
        compute=place.compute,
    )
    request_path = os.path.join(folder, "build.json")
    files.write_json(request_path, request)
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    child = subprocess.Popen(
        [sys.executable, "-m", "device_agent.trt_builder", request_path],
        cwd=here,
        stdin=subprocess.DEVNULL,
        stdout=2,  # into the job's stderr: native libraries print there
    )
    code = child.wait()
    answer = files.read_object(paths["answer"])
    if answer:
        return answer, None
    if code >= 0:
        raise trt_builder.BuildFailed(
            "the builder ended with exit code %d and no answer; its last words are in the job's "
            "stderr" % code
        )
    how = "killed by %s" % signal.Signals(-code).name
    line = telemetry.memory_kill(child.pid)
    if line:
        how += "; the kernel says %r" % line
    elif -code != signal.SIGKILL:
        # A crash is no lack of memory, and would be the same again.
        raise trt_builder.BuildFailed("the builder was %s: this is a bug of TensorRT's" % how)
    return {}, how


def _keep(place, folder):
    """The blobs that the builder's files have become."""
    timing_cache = None
    new_cache = os.path.join(folder, "new_cache")
    if os.path.exists(new_cache):
        copy = "%s.%d" % (place.timing_cache(), os.getpid())
        shutil.copyfile(new_cache, copy)
        os.replace(copy, place.timing_cache())
        timing_cache = blobs.adopt(place.cache_dir, new_cache)[0]
    plan = os.path.join(folder, "plan")
    size_bytes = os.path.getsize(plan)
    return {
        "engine": blobs.adopt(place.cache_dir, plan)[0],
        "size_bytes": size_bytes,
        "timing_cache": timing_cache,
    }


def _obituary(attempts):
    memory = telemetry.read_text("/proc/meminfo") or ""
    swap = next((line for line in memory.splitlines() if line.startswith("SwapFree")), "")
    tried = "; ".join(
        "%d MiB workspace, %s free: %s"
        % (
            one["workspace_bytes"] >> 20,
            "unknown"
            if one["free_memory_bytes"] is None
            else "%d MiB" % (one["free_memory_bytes"] >> 20),
            one["ended"],
        )
        for one in attempts
    )
    return (
        "building ran out of memory (%s; %s): stop programs (a desktop takes several hundred MB), "
        "add swap, or build a smaller network" % (tried, " ".join(swap.split()) or "swap unknown")
    )
