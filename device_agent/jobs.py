"""Jobs that outlive the connection, from the agent's side: started, watched, cancelled.

One folder each, run by ``worker.py`` in a session of its own. A job's folder holds
``request.json``, ``worker.json`` (its process group), ``events.jsonl``, ``stderr.txt`` and in the
end ``outcome.json``, which is written once: the first one to write it wins. The worker holds a
lock on ``alive`` for as long as it or its child lives; process numbers are reused, locks are not.
Ages are told by the monotonic clock and the boot, because a board's clock jumps.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from . import files, telemetry, wire

# Import errors and full disks kill a worker before it takes its lock; it gets this long.
START_TIMEOUT_S = 30.0
TERMINATE_TIMEOUT_S = 2.0
STDERR_TAIL_BYTES = 4000
FETCHED = "fetched"
OVER = ("done", "failed", "died", "cancelled")

_children = {}


class JobIdReused(Exception):
    """The job id belongs to a job with another request."""


class UnknownJob(Exception):
    """There is no job with this id."""


class Child:
    """A worker that this agent has started; ``ended`` becomes readable when it has ended."""

    def __init__(self, folder):
        self.ended, write = os.pipe()
        try:
            with open(os.path.join(folder, "stderr.txt"), "ab") as stderr:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "device_agent", "worker", folder],
                    cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
                    stdin=subprocess.DEVNULL,
                    stdout=stderr,
                    stderr=stderr,
                    start_new_session=True,
                    pass_fds=(write,),
                )
        except BaseException:
            os.close(self.ended)
            raise
        finally:
            os.close(write)


def folder_of(cache_dir, job_id):
    """The job's folder."""
    return os.path.join(cache_dir, "jobs", job_id)


def outcome_of(folder):
    """The job's outcome, or None while it runs or where its file is damaged."""
    try:
        found = files.read_sealed(os.path.join(folder, "outcome.json"))
    except files.Damaged:
        return None
    return found if isinstance(found, dict) and found.get("state") in OVER else None


def request_of(folder):
    """The job's request; {} where its file is missing or damaged."""
    return files.read_object(os.path.join(folder, "request.json"))


def write_outcome(folder, outcome):
    """Write the outcome, unless there is one already."""
    files.write_sealed_once(os.path.join(folder, "outcome.json"), outcome)


def alive(folder):
    """Whether the job's worker or its child lives."""
    try:
        descriptor = os.open(os.path.join(folder, "alive"), os.O_RDWR)
    except OSError:
        return False
    try:
        return not files.lock(descriptor, 0.0)
    finally:
        os.close(descriptor)


def is_without_result(folder):
    """Whether the job is over and no host may still want a result of it."""
    if _is_young(folder):
        return False
    outcome = outcome_of(folder)
    return outcome is None or outcome["state"] != "done"


def needed_blobs(cache_dir):
    """Hashes of the blobs that jobs which are not over need."""
    found = set()
    parent = os.path.join(cache_dir, "jobs")
    for name in os.listdir(parent) if os.path.isdir(parent) else ():
        folder = os.path.join(parent, name)
        if os.path.exists(os.path.join(folder, "outcome.json")):
            continue
        params = request_of(folder).get("params")
        if isinstance(params, dict):
            engines = params.get("engines")
            names = list(engines) if isinstance(engines, list) else []
            names += [params.get("network"), params.get("inputs")]
            found.update(name for name in names if isinstance(name, str))
    return found


def submit(cache_dir, job_id, kind, params, owner, timeout_s):
    """Start a job, or attach to the one that has this id."""
    request = {"kind": kind, "params": params}
    folder = folder_of(cache_dir, job_id)
    _refuse_link(folder)
    if not os.path.exists(os.path.join(folder, "request.json")):
        _create(folder, dict(request, owner=owner, timeout_s=timeout_s))
    found = request_of(folder)
    if {key: found.get(key) for key in request} != request:
        raise JobIdReused("job %s exists with another request" % job_id)
    started = os.path.exists(os.path.join(folder, "worker.json"))
    if not started and outcome_of(folder) is None and job_id not in _children:
        # Two agents may both come here; the second worker finds the lock taken and leaves.
        _children[job_id] = Child(folder)
    return status(cache_dir, job_id)


def _create(folder, request):
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    suffix = ".%d" % os.getpid()
    temporary = tempfile.mkdtemp(prefix=".new-", suffix=suffix, dir=os.path.dirname(folder))
    born = {"boot_id": files.boot_id(), "at_s": time.monotonic()}
    try:
        files.write_json(os.path.join(temporary, "request.json"), dict(request, **born))
        os.rename(temporary, folder)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        if not os.path.isdir(folder):
            raise


def _refuse_link(folder):
    # Whatever it points to is none of ours, and jobs write into their folders.
    if os.path.islink(folder):
        raise UnknownJob("%s is a link, and no job's folder is one: remove it" % folder)


def status(cache_dir, job_id):
    """The job's state and how many events it has written."""
    folder = folder_of(cache_dir, job_id)
    _refuse_link(folder)
    if not os.path.isdir(folder):
        raise UnknownJob("there is no job %s on this board" % job_id)
    return {
        "job_id": job_id,
        "state": _state(folder, job_id),
        "events": len(events(folder, 0)),
    }


def ended_of(job_id):
    """A descriptor that becomes readable at the job's end, or None if another agent started it."""
    child = _children.get(job_id)
    return None if child is None else child.ended


def _forget(job_id):
    child = _children.pop(job_id, None)
    if child is not None:
        os.close(child.ended)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.process.wait(TERMINATE_TIMEOUT_S)


def _state(folder, job_id):
    child = _children.get(job_id)
    returned = None if child is None else child.process.poll()
    outcome = outcome_of(folder)
    if outcome is not None:
        _forget(job_id)
        return outcome["state"]
    started = os.path.exists(os.path.join(folder, "worker.json"))
    if alive(folder):
        running = os.path.exists(os.path.join(folder, "running"))
        return "running" if running else "waiting"
    starting = child is not None and returned is None
    if not started and (starting or (child is None and _is_young(folder))):
        return "waiting"
    # The worker may have finished between the two looks; write_outcome keeps what it wrote.
    outcome = outcome_of(folder)
    if outcome is None:
        path = os.path.join(folder, "outcome.json")
        if os.path.lexists(path):
            os.replace(path, path + ".damaged")
        number = -returned if returned is not None and returned < 0 else None
        write_outcome(folder, died(folder, number, None, _process_group(folder)))
        outcome = outcome_of(folder)
        if outcome is None:
            raise files.Damaged("%s cannot be written: is the disk failing?" % path)
    _forget(job_id)
    return outcome["state"]


def _is_young(folder):
    """Whether another agent may still be starting the worker; not after a boot."""
    request = request_of(folder)
    if request.get("boot_id") != files.boot_id() or files.boot_id() == "":
        return False
    at_s = request.get("at_s")
    return isinstance(at_s, float) and 0.0 <= time.monotonic() - at_s < START_TIMEOUT_S


def _process_group(folder):
    """The number of the worker and of its process group, or None before it has started."""
    group = files.read_object(os.path.join(folder, "worker.json")).get("process_group")
    # Numbers that mean more than one group, or this agent's own, are in no file that is whole.
    known = isinstance(group, int) and 1 < group < 1 << 31 and group != os.getpgrp()
    return group if known else None


def died(folder, number, exit_code, process):
    """The outcome of a job whose ``process`` ended without one."""
    tail, path = "", os.path.join(folder, "stderr.txt")
    with contextlib.suppress(OSError), files.open_file(path) as stream:
        stream.seek(0, os.SEEK_END)
        stream.seek(max(0, stream.tell() - STDERR_TAIL_BYTES))
        tail = stream.read().decode(errors="replace")
    request = request_of(folder)
    return {
        "state": "died",
        "signal": number,
        "exit_code": exit_code,
        "stderr_tail": tail,
        "free_memory_bytes": telemetry.conditions()["free_memory_bytes"],
        "rebooted": request.get("boot_id") != files.boot_id(),
        "memory_kill": None if process is None else telemetry.memory_kill(process),
    }


def events(folder, after):
    """Events number ``after + 1`` and later."""
    data = b""
    with contextlib.suppress(OSError):
        data = files.read_bytes(os.path.join(folder, "events.jsonl"))
    found = []
    for number, line in enumerate(data.strip().split(b"\n")[after:], after + 1):
        try:
            event = wire.parse(line)
        except (ValueError, RecursionError):
            break  # its second half is still being written
        if not isinstance(event, dict):
            break  # the disk has damaged it
        event["seq"] = number
        found.append(event)
    return found


def fetch(cache_dir, job_id):
    """The outcome of a job that is over; from now on it may be swept."""
    folder = folder_of(cache_dir, job_id)
    outcome = outcome_of(folder)
    with contextlib.suppress(OSError):
        files.write_text(os.path.join(folder, FETCHED), "")
    return outcome


def cancel(cache_dir, job_id):
    """End the job's whole process group; a job that is over stays as it is."""
    folder = folder_of(cache_dir, job_id)
    if status(cache_dir, job_id)["state"] in ("waiting", "running"):
        write_outcome(folder, {"state": "cancelled"})
        group = _process_group(folder)
        for number in (signal.SIGTERM, signal.SIGKILL):
            if group is None or not alive(folder):
                break
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, number)
            deadline_s = time.monotonic() + TERMINATE_TIMEOUT_S
            while alive(folder) and time.monotonic() < deadline_s:
                time.sleep(files.POLL_S)
    return status(cache_dir, job_id)
