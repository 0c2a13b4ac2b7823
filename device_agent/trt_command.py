"""trtexec, for boards that lack the Python bindings: one run builds, measures and profiles.

The agent runs the command and keeps what it wrote; the host reads the log and the files. Which
version has which option: NVIDIA's trtexec README and release notes of 8.0, 8.2, 8.4, 8.5, 8.6 and
10. Of all these commands three logs of 8.0.1 on a Nano prove ``PROVEN``; the others have never been
seen to run here, and an answer says which of its options are unproven.
"""

import contextlib
import os
import signal
import subprocess
from typing import NamedTuple

from . import blobs, runtimes, telemetry, trt_api, trt_build

Option = NamedTuple("Option", [("name", str), ("since", tuple), ("until", tuple)])
LATEST = (1 << 30, 0)
# First version that has it, first that has it no more.
OPTIONS = (
    Option("--workspace", (8, 0), (8, 4)),
    Option("--memPoolSize", (8, 4), LATEST),
    Option("--nvtxMode", (8, 0), (8, 2)),
    Option("--profilingVerbosity", (8, 2), LATEST),
    Option("--exportLayerInfo", (8, 2), LATEST),
    Option("--precisionConstraints", (8, 2), (11, 0)),
    Option("--layerPrecisions", (8, 4), (11, 0)),
    Option("--stronglyTyped", (9, 1), LATEST),
    Option("--fp16", (8, 0), (11, 0)),
    Option("--int8", (8, 0), (11, 0)),
)
# Options of all versions from 8.0 on.
ALWAYS = (
    "--onnx",
    "--saveEngine",
    "--timingCacheFile",
    "--noTF32",
    "--warmUp",
    "--duration",
    "--iterations",
    "--percentile",
    "--useSpinWait",
    "--useCudaGraph",
    "--noDataTransfers",
    "--separateProfileRun",
    "--exportTimes",
    "--exportProfile",
    "--dumpProfile",
)
PROVEN = {(8, 0): ("--onnx", "--fp16", "--workspace")}
# What it writes into the job's folder, by what the host calls it.
FILES = {
    "--saveEngine": "engine",
    "--timingCacheFile": "timing_cache",
    "--exportTimes": "times",
    "--exportProfile": "profile",
    "--exportLayerInfo": "layers",
}
LOG_TAIL_LINES = 8


class TrtexecFailed(Exception):
    """trtexec ended without having measured; the message has its last errors."""


def release(version):
    """(major, minor) of ``8.2.1``; that of the oldest known where trtexec does not tell."""
    return (8, 0) if version is None else tuple(int(part) for part in version.split(".")[:2])


def has(version, name):
    """Whether a version's trtexec has an option."""
    wanted = release(version)
    return name in ALWAYS or any(
        option.name == name and option.since <= wanted < option.until for option in OPTIONS
    )


def command(path, version, network, build, measure, workspace_bytes, folder):
    """The command's words; ``UnsupportedOption`` where the version cannot do what is wanted.

    ``build`` is the wire's, ``measure`` has ``warmup_s``, ``duration_s``, ``iterations`` and
    ``percentile``.
    """
    options = trt_build.options_of(build)
    mib = str(max(1, workspace_bytes >> 20))
    words = [("--onnx", network)] + _precisions(version, options)
    words.append(
        ("--memPoolSize", "workspace:" + mib)
        if has(version, "--memPoolSize")
        else ("--workspace", mib)
    )
    words.append(
        ("--profilingVerbosity", "detailed")
        if has(version, "--profilingVerbosity")
        else ("--nvtxMode", "verbose")
    )
    words += [
        ("--warmUp", "%d" % round(measure["warmup_s"] * 1e3)),
        ("--duration", "%d" % max(1, round(measure["duration_s"]))),
        ("--iterations", "%d" % measure["iterations"]),
        ("--percentile", "%g" % measure["percentile"]),
        # The profiler slows calls down: what is timed is not what is profiled.
        ("--separateProfileRun", None),
        ("--dumpProfile", None),
    ]
    if build.get("cuda_graph"):
        words.append(("--useCudaGraph", None))
    if build.get("spin_wait"):
        words.append(("--useSpinWait", None))
    if not build.get("transfers", True):
        words.append(("--noDataTransfers", None))
    for name, file in FILES.items():
        if has(version, name) and not (name == "--timingCacheFile" and options["rebuild"]):
            words.append((name, os.path.join(folder, file)))
    lacking = [name for name, _ in words if not has(version, name)]
    if lacking:
        raise trt_api.UnsupportedOption("trtexec %s has no %s" % (version, ", ".join(lacking)))
    return [path] + [name if value is None else name + "=" + value for name, value in words]


def _precisions(version, options):
    words = [("--" + flag, None) for flag in options["flags"] if flag != "tf32"]
    if "tf32" not in options["flags"]:
        words.append(("--noTF32", None))
    # Without the option all networks are strongly typed (11), and so are these.
    if options["strongly_typed"] and release(version) < (11, 0):
        words.append(("--stronglyTyped", None))
    if not options["layers"]:
        return words
    bad = [name for name in options["layers"] if set(name) & set(',:"')]
    if bad:
        raise trt_api.UnsupportedOption(
            "trtexec cannot be told a precision for node %s: its name holds a comma or a colon"
            % bad[0]
        )
    told = ["%s:%s" % one for one in sorted(options["layers"].items())]
    words.append(("--precisionConstraints", options["constraints"]))
    words.append(("--layerPrecisions", ",".join(told)))
    return words + [
        ("--" + flag, None)
        for flag in sorted(set(options["layers"].values()) - {"fp32"} - set(options["flags"]))
    ]


def unproven(version, words):
    """The options of a command that no log of this version shows."""
    proven = PROVEN.get(release(version), ())
    names = [word.partition("=")[0] for word in words[1:]]
    return [name for name in names if name not in proven]


def execute(cache_dir, network, build, measure, folder, tell):
    """What a run left: ``log`` and ``files`` as blobs, ``command``, ``attempts``, ``version``.

    A run that memory runs out for is tried again with less workspace, as building is.
    """
    tool = runtimes.trtexec(find=_find)
    if tool is None:
        raise TrtexecFailed("there is no trtexec on this board: install libnvinfer-bin")
    path, version = tool["path"], tool["version"]
    onnx = blobs.require(cache_dir, network)
    workspace_bytes, attempts = build.get("workspace_bytes") or trt_build.WORKSPACE_BYTES, []
    log = os.path.join(folder, "trtexec.log")
    while True:
        words = command(path, version, onnx, build, measure, workspace_bytes, folder)
        ended = _run(words, folder, log)
        free_bytes = telemetry.conditions()["free_memory_bytes"]
        attempts.append(
            {
                "workspace_bytes": workspace_bytes,
                "free_memory_bytes": free_bytes,
                "ended": ended or "ended well",
            }
        )
        if ended is None:
            break
        if not (ended.startswith("killed") or "out of memory" in ended.lower()):
            raise TrtexecFailed("%s: %s" % (" ".join(words), ended))
        if workspace_bytes <= trt_build.SMALLEST_WORKSPACE_BYTES:
            raise TrtexecFailed("%s: %s" % (" ".join(words), trt_build.obituary(attempts)))
        workspace_bytes = trt_build.smaller(workspace_bytes)
        tell(
            "memory ran out; running trtexec again with a workspace of %d MiB"
            % (workspace_bytes >> 20)
        )
    found = {"command": words, "version": version, "attempts": attempts}
    found["unproven"] = unproven(version, words)
    found["log"] = _kept(cache_dir, log)
    found["files"] = {
        name: _kept(cache_dir, os.path.join(folder, name))
        for name in FILES.values()
        if os.path.exists(os.path.join(folder, name))
    }
    return found


def _find(name):
    from . import board

    return board.program(name)


def _run(words, folder, log):
    """None, or how the run ended that did not end well."""
    for name in FILES.values():
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(folder, name))
    with open(log, "wb") as stream:
        child = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT
        )
        code = child.wait()
    if code == 0:
        return None
    if code == -signal.SIGKILL:
        line = telemetry.memory_kill(child.pid)
        return "killed by SIGKILL" + ("; the kernel says %r" % line if line else "")
    with open(log, errors="replace") as stream:
        errors = [line.strip() for line in stream if "[E]" in line or "&&&& FAILED" in line]
    how = "exit code %d" % code if code > 0 else "ended by %s" % signal.Signals(-code).name
    return "%s: %s" % (how, "; ".join(errors[-LOG_TAIL_LINES:]) or "it says not why")


def _kept(cache_dir, path):
    """Hash, path and size of the blob that a file has become."""
    size_bytes = os.path.getsize(path)
    sha256, place = blobs.adopt(cache_dir, path)
    return {"sha256": sha256, "path": place, "size_bytes": size_bytes}
