"""Jobs that outlive the connection: one folder each, run by a worker in a session of its own.

A job's folder holds ``request.json``, ``worker.json`` (its process group), ``events.jsonl``,
``stderr.txt`` and in the end ``outcome.json``, which is written once: the first one to write it
wins. The worker holds a lock on ``alive`` for as long as it or its child lives; process numbers are
reused, locks are not.
"""

import contextlib
import errno
import fcntl
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback

from . import blobs, telemetry, timing

# Import errors and full disks kill a worker before it takes its lock; it gets this long.
START_TIMEOUT_S = 30.0
LEASE_TIMEOUT_S = 600.0
TERMINATE_TIMEOUT_S = 2.0
POLL_S = 0.1
KEEP_S = 14 * 86400.0
STDERR_TAIL_BYTES = 4000

_children = {}


class JobIdReused(Exception):
    """The job id belongs to a job with another request."""


class LeaseHeld(Exception):
    """Another job held the board's lease for too long."""


class UnknownJob(Exception):
    """There is no job with this id."""


def folder_of(cache_dir, job_id):
    """The job's folder."""
    return os.path.join(cache_dir, "jobs", job_id)


def read_json(path):
    """Content of a JSON file, or None where there is none."""
    try:
        with open(path) as stream:
            return json.load(stream)
    except (OSError, ValueError):
        return None


def write_json(path, content):
    """Write a JSON file so that a reader sees all of it or none."""
    temporary = "%s.%d" % (path, os.getpid())
    with open(temporary, "w") as stream:
        json.dump(content, stream, allow_nan=False)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def write_outcome(folder, outcome):
    """Write the outcome, unless there is one already."""
    final = os.path.join(folder, "outcome.json")
    temporary = "%s.%d.new" % (final, os.getpid())
    write_json(temporary, outcome)
    with contextlib.suppress(FileExistsError):
        os.link(temporary, final)
    os.remove(temporary)


def outcome_of(folder):
    """The job's outcome, or None while it runs."""
    return read_json(os.path.join(folder, "outcome.json"))


def _lock(path, timeout_s):
    """A locked file, or None if someone else holds it for all of ``timeout_s``."""
    stream = open(path, "a+")  # noqa: SIM115 (returned while it is locked)
    deadline = time.perf_counter() + timeout_s
    while True:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return stream
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        if time.perf_counter() >= deadline:
            stream.close()
            return None
        time.sleep(POLL_S)


def alive(folder):
    """Whether the job's worker or its child lives."""
    stream = _lock(os.path.join(folder, "alive"), 0.0)
    if stream is None:
        return True
    stream.close()
    return False


# --- the agent's side ---------------------------------------------------------------------------


def submit(cache_dir, job_id, kind, params):
    """Start a job, or attach to the one that has this id."""
    request = {"kind": kind, "params": params}
    folder = folder_of(cache_dir, job_id)
    if not os.path.isdir(folder):
        os.makedirs(os.path.dirname(folder), exist_ok=True)
        temporary = tempfile.mkdtemp(prefix=".new-", dir=os.path.dirname(folder))
        write_json(os.path.join(temporary, "request.json"), request)
        try:
            os.rename(temporary, folder)
        except OSError:
            shutil.rmtree(temporary)
            if not os.path.isdir(folder):
                raise
    if read_json(os.path.join(folder, "request.json")) != request:
        raise JobIdReused("job %s exists with another request" % job_id)
    started = os.path.exists(os.path.join(folder, "worker.json"))
    if not started and outcome_of(folder) is None and job_id not in _children:
        # Two agents may both come here; the second worker finds the lock taken and leaves.
        with open(os.path.join(folder, "stderr.txt"), "ab") as stderr:
            _children[job_id] = subprocess.Popen(
                [sys.executable, "-m", "device_agent", "worker", folder],
                cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                start_new_session=True,
            )
    return status(cache_dir, job_id)


def status(cache_dir, job_id):
    """The job's state and how many events it has written."""
    folder = folder_of(cache_dir, job_id)
    if not os.path.isdir(folder):
        raise UnknownJob("there is no job %s on this board" % job_id)
    return {
        "job_id": job_id,
        "state": _state(folder, job_id),
        "events": len(events(folder, 0)),
    }


def _state(folder, job_id):
    child = _children.get(job_id)
    returned = None if child is None else child.poll()
    outcome = outcome_of(folder)
    if outcome is not None:
        return outcome["state"]
    started = os.path.exists(os.path.join(folder, "worker.json"))
    if alive(folder):
        running = os.path.exists(os.path.join(folder, "running"))
        return "running" if running else "waiting"
    age_s = time.time() - os.path.getmtime(os.path.join(folder, "request.json"))
    starting = child is not None and returned is None
    if not started and (starting or (child is None and age_s < START_TIMEOUT_S)):
        return "waiting"
    # The worker may have finished between the two looks; write_outcome keeps what it wrote.
    number = -returned if returned is not None and returned < 0 else None
    write_outcome(folder, _died(folder, number, None))
    return outcome_of(folder)["state"]


def _died(folder, number, exit_code):
    with contextlib.suppress(OSError), open(os.path.join(folder, "stderr.txt"), "rb") as stream:
        stream.seek(0, os.SEEK_END)
        stream.seek(max(0, stream.tell() - STDERR_TAIL_BYTES))
        tail = stream.read().decode(errors="replace")
    return {
        "state": "died",
        "signal": number,
        "exit_code": exit_code,
        "stderr_tail": tail,
        "free_memory_bytes": telemetry.conditions()["free_memory_bytes"],
    }


def events(folder, after):
    """Events number ``after + 1`` and later."""
    text = telemetry.read_text(os.path.join(folder, "events.jsonl")) or ""
    found = []
    for number, line in enumerate(text.splitlines()[after:], after + 1):
        try:
            event = json.loads(line)
        except ValueError:
            break  # its second half is still being written
        event["seq"] = number
        found.append(event)
    return found


def cancel(cache_dir, job_id):
    """End the job's whole process group; a job that is over stays as it is."""
    folder = folder_of(cache_dir, job_id)
    if status(cache_dir, job_id)["state"] in ("waiting", "running"):
        write_outcome(folder, {"state": "cancelled"})
        worker = read_json(os.path.join(folder, "worker.json"))
        for number in (signal.SIGTERM, signal.SIGKILL):
            if worker is None or not alive(folder):
                break
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker["process_group"], number)
            deadline = time.perf_counter() + TERMINATE_TIMEOUT_S
            while alive(folder) and time.perf_counter() < deadline:
                time.sleep(POLL_S)
    return status(cache_dir, job_id)


def sweep(cache_dir, now_s):
    """Remove jobs that are over, and blobs, that nobody has touched for two weeks."""
    for name in ("jobs", "blobs", os.path.join("blobs", "incoming")):
        parent = os.path.join(cache_dir, name)
        for entry in os.listdir(parent) if os.path.isdir(parent) else ():
            path = os.path.join(parent, entry)
            with contextlib.suppress(OSError):
                if entry == "incoming" or now_s - os.path.getmtime(path) < KEEP_S:
                    continue
                if os.path.isfile(path):
                    os.remove(path)
                elif not alive(path):
                    shutil.rmtree(path)


# --- the worker's side --------------------------------------------------------------------------


class Reporter:
    """Appends the job's events, a few a second at most."""

    def __init__(self, folder):
        self._path = os.path.join(folder, "events.jsonl")
        self._last_s = None

    def waiting(self, what):
        """Tell that the job waits for something."""
        self._write({"kind": "waiting", "what": what})

    def progress(self, what, done, total):
        """Tell how far the job is."""
        now_s = time.perf_counter()
        if done == total or self._last_s is None or now_s - self._last_s > 0.25:
            self._last_s = now_s
            self._write({"kind": "progress", "what": what, "done": done, "total": total})

    def _write(self, event):
        with open(self._path, "a") as stream:
            stream.write(json.dumps(event) + "\n")


def work(folder):
    """Exit code of a worker: runs the job in a child, whose death it lives to tell."""
    mine = _lock(os.path.join(folder, "alive"), 5 * POLL_S)
    if mine is None or outcome_of(folder) is not None:
        return 0
    cache_dir = os.path.dirname(os.path.dirname(folder))
    write_json(os.path.join(folder, "worker.json"), {"process_group": os.getpgrp()})
    reporter = Reporter(folder)
    lease_path = os.path.join(cache_dir, "lease")
    lease = _lock(lease_path, 0.0)
    if lease is None:
        reporter.waiting("the board's lease, held by job %s" % telemetry.read_text(lease_path))
        lease = _lock(lease_path, LEASE_TIMEOUT_S)
    if lease is None:
        held = LeaseHeld("the board was busy for %.0f s" % LEASE_TIMEOUT_S)
        write_outcome(folder, _failed(held, ""))
        return 0
    lease.truncate(0)
    lease.write(os.path.basename(folder))
    lease.flush()
    write_json(os.path.join(folder, "running"), True)
    child = os.fork()
    if child == 0:
        try:
            write_outcome(folder, _attempt(folder, cache_dir, reporter))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    _, code = os.waitpid(child, 0)
    if outcome_of(folder) is None:
        number = os.WTERMSIG(code) if os.WIFSIGNALED(code) else None
        exit_code = os.WEXITSTATUS(code) if os.WIFEXITED(code) else None
        write_outcome(folder, _died(folder, number, exit_code))
    return 0


def _failed(error, trace):
    text = {"type": type(error).__name__, "message": str(error), "traceback": trace}
    return {"state": "failed", "exception": text}


def _attempt(folder, cache_dir, reporter):
    """The outcome of running the job here and now; an exception is an outcome too."""
    request = read_json(os.path.join(folder, "request.json"))
    kind, params = request["kind"], request["params"]
    run = {"measure": _measure, "profile": _profile, "infer": _infer}[kind]
    try:
        engine = importlib.import_module("device_agent.engine_" + params["runtime"])
        result = run(engine, params, folder, cache_dir, reporter)
        result["runtime_version"] = engine.version()[0]
    except Exception as error:
        return _failed(error, traceback.format_exc())
    return {"state": "done", "kind": kind, "result": result}


def _measure(engine, params, folder, cache_dir, reporter):
    del folder
    plan = timing.Plan(**params["plan"])
    paths = [blobs.require(cache_dir, sha256) for sha256 in params["engines"]]
    reporter.progress("warming up", 0, plan.rounds)
    engines = [engine.load(path, params["threads"], params["seed"]) for path in paths]
    conditions, soaked = [], []

    def look():
        if plan.soak_s > 0:
            soaked.extend(
                timing.soak(
                    [one.run for one in engines],
                    plan.soak_s,
                    engine.clock,
                    lambda: telemetry.conditions(count_before=count_before),
                    lambda at_s: reporter.progress("soaking, s", int(at_s), int(plan.soak_s)),
                )
            )
        # After warming up: an idle board's clocks say nothing of those it measures at.
        conditions.append(telemetry.conditions())

    count_before = telemetry.throttle_count()
    timed = timing.interleave(
        [one.run for one in engines],
        plan,
        engine.clock,
        look,
        lambda done: reporter.progress("measuring", done, plan.rounds),
    )
    after = telemetry.conditions(count_before=count_before)
    found = [
        dict(one._asdict(), sha256=params["engines"][index], batch=engines[index].batch)
        for index, one in enumerate(timed)
    ]
    for into, one in zip(found, soaked):  # noqa: B905 (strict= is Python 3.10)
        into["soak"] = one.wire()
    for one in engines:
        one.close()
    return {"engines": found, "before": conditions[0], "after": after}


def _profile(engine, params, folder, cache_dir, reporter):
    path = blobs.require(cache_dir, params["network"])
    reporter.progress("profiling", 0, 1)
    kernels = engine.profile(path, params["threads"], params["seed"], params["runs"], folder)
    return {"kernels": kernels}


def _infer(engine, params, folder, cache_dir, reporter):
    path = blobs.require(cache_dir, params["network"])
    inputs = blobs.require(cache_dir, params["inputs"])
    outputs = os.path.join(folder, "outputs.npy")
    engine.infer(
        path,
        params["threads"],
        inputs,
        params["input_name"],
        outputs,
        lambda done, total: reporter.progress("inferring", done, total),
    )
    size_bytes = os.path.getsize(outputs)
    sha256, path = blobs.adopt(cache_dir, outputs)
    return {"outputs": sha256, "path": path, "size_bytes": size_bytes}
