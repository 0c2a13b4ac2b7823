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

from . import blobs, cleaning, files, onnx_nodes, telemetry, trt_api, trt_builder

# A change of what goes into the key, or of what a file holds, begins anew.
SCHEMA = 1
# What the wire's "build" says of building, with what is meant where it is left out.
OPTIONS = {
    # fp16, int8 and tf32 beside fp32.
    "flags": [],
    # Node name to fp32, fp16 or int8, and whether that is obeyed or preferred.
    "layers": {},
    "constraints": "none",
    "strongly_typed": False,
    "workspace_bytes": None,
    # Another build of the same: the number keeps them apart, and no timing cache makes them alike.
    "rebuild": 0,
}
# Enough for every tactic of the networks that a Nano runs, and a sixteenth of its memory.
WORKSPACE_BYTES = 256 << 20
# trtexec's default up to 8.2; with less many convolutions have no fast tactic.
SMALLEST_WORKSPACE_BYTES = 16 << 20
SMALLER = 4
WORDS_BYTES = 1500
ERRORS = {
    kind.__name__: kind
    for kind in (
        trt_builder.NetworkRefused,
        trt_builder.BuildFailed,
        trt_api.UnsupportedOption,
        onnx_nodes.NoOnnxFile,
    )
}


class BuildDied(Exception):
    """Building ended in a signal even with the smallest workspace; the message says what is left
    to do."""


def options_of(build):
    """The options of building among those of a job, in one form for the key."""
    found = {name: build.get(name, default) for name, default in OPTIONS.items()}
    return dict(found, flags=sorted(set(found["flags"])))


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
        return os.path.join(self.cache_dir, cleaning.ENGINES, "timing-%s.cache" % name[:32])

    def record(self, key):
        """Path of what is known of an engine."""
        return os.path.join(self.cache_dir, cleaning.ENGINES, key + ".json")


def smaller(workspace_bytes):
    """The workspace to try when one was too much."""
    return max(SMALLEST_WORKSPACE_BYTES, workspace_bytes // SMALLER)


def engine(place, network, build, folder, tell):
    """What is known of a network's engine, which is built if it is not there yet.

    ``network`` is the ONNX file's hash, ``build`` the wire's, ``folder`` the job's;
    ``tell(sentence)`` is told when something is tried again. ``engine`` in the answer is the hash
    of the serialised engine's blob.
    """
    options = options_of(build)
    where = (place.flavour, place.version, place.compute, place.power_mode)
    record = place.record(key_of(network, *where, options=options))
    known = files.read_object(record)
    if known.get("engine") and blobs.has(place.cache_dir, known["engine"]):
        for path in (record, place.record(known["engine"])):
            with contextlib.suppress(OSError):
                os.utime(path, None)  # it is in use: see cleaning
        return dict(known, cached=True)
    os.makedirs(os.path.dirname(record), exist_ok=True)
    found = _build(place, network, options, folder, tell)
    found.update(network=network, power_mode=place.power_mode, compute=place.compute)
    files.write_json(record, found)
    files.write_json(place.record(found["engine"]), {"network": network})
    return dict(found, cached=False)


def network_of(cache_dir, sha256):
    """The hash of the network that an engine was built of here; None if it is no such engine."""
    return files.read_object(os.path.join(cache_dir, cleaning.ENGINES, sha256 + ".json")).get(
        "network"
    )


def _build(place, network, options, folder, tell):
    """Tries with less and less workspace; what was tried, and what came of it."""
    workspace_bytes, attempts = options["workspace_bytes"] or WORKSPACE_BYTES, []
    while True:
        before = telemetry.conditions()["free_memory_bytes"]
        answer, death = _attempt(place, network, options, workspace_bytes, folder)
        attempt = {"workspace_bytes": workspace_bytes, "free_memory_bytes": before}
        attempts.append(dict(attempt, ended=death or answer.get("message", "built")))
        if "facts" in answer:
            found = dict(answer["facts"], attempts=attempts, workspace_bytes=workspace_bytes)
            return dict(found, **_keep(place, folder))
        if death is None and answer["error"] != "OutOfDeviceMemory":
            raise ERRORS[answer["error"]](answer["message"])
        if workspace_bytes <= SMALLEST_WORKSPACE_BYTES:
            raise BuildDied(obituary(attempts))
        workspace_bytes = smaller(workspace_bytes)
        tell("memory ran out; building again with a workspace of %d MiB" % (workspace_bytes >> 20))


def _attempt(place, network, options, workspace_bytes, folder):
    """The builder's answer, or {} and how it died."""
    paths = {name: os.path.join(folder, name) for name in ("plan", "new_cache", "answer")}
    for path in paths.values():
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)
    request = dict(
        paths,
        flavour=place.flavour,
        network=blobs.require(place.cache_dir, network),
        options=options,
        workspace_bytes=workspace_bytes,
        timing_cache=None if options["rebuild"] else place.timing_cache(),
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
            "the builder ended with exit code %d and no answer. Its last words: %s"
            % (code, _last_words(folder))
        )
    how = "killed by %s" % signal.Signals(-code).name
    line = telemetry.memory_kill(child.pid)
    if line:
        how += "; the kernel says %r" % line
    elif -code != signal.SIGKILL:
        # A crash is no lack of memory, and would be the same again.
        raise trt_builder.BuildFailed("the builder was %s: this is a bug of TensorRT's" % how)
    return {}, how


def _last_words(folder):
    """The end of what the job and its builder have printed."""
    try:
        printed = files.read_bytes(os.path.join(folder, "stderr.txt"))
    except OSError:
        return "none"
    return printed[-WORDS_BYTES:].decode(errors="replace").strip() or "none"


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


def obituary(attempts):
    """What was tried before memory ran out for the last time, and what is left to do."""
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
