"""Jobs from the worker's side: wait for the lease, run in a child, live to tell of its death."""

import contextlib
import importlib
import json
import os
import signal
import sys
import time
import traceback
from typing import NamedTuple

from . import blobs, files, jobs, lease, sampling, telemetry, timing, undo
from .board import Board

LEASE_TIMEOUT_S = 600.0
# How much later than the watching process the child ends itself.
ALARM_S = 5
# What a runtime loads: the file, the network that it was made of, and what is known of its build.
_Loadable = NamedTuple("_Loadable", [("path", str), ("network", str), ("facts", object)])


class JobTimeout(Exception):
    """A job took longer than its host allows."""


class Reporter:
    """Appends the job's events, a few a second at most."""

    def __init__(self, folder):
        self._path = os.path.join(folder, "events.jsonl")
        self._last_s = None
        # When the job began to run, on the clock of its telemetry.
        self.start_s = None

    def waiting(self, what):
        """Tell that the job waits for something."""
        self._write({"kind": "waiting", "what": what})

    def again(self, what):
        """Tell that something is tried once more, and how."""
        self._write({"kind": "retry", "what": what})

    def progress(self, what, done, total):
        """Tell how far the job is."""
        now_s = time.monotonic()
        if done == total or self._last_s is None or now_s - self._last_s > 0.25:
            self._last_s = now_s
            self._write({"kind": "progress", "what": what, "done": done, "total": total})

    def _write(self, event):
        # A full disk must not end a measurement that needs none of it.
        with contextlib.suppress(OSError), open(self._path, "a") as stream:
            stream.write(json.dumps(event) + "\n")


def work(folder):
    """Exit code of a worker."""
    alive = os.open(os.path.join(folder, "alive"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not files.lock(alive, 5 * files.POLL_S) or jobs.outcome_of(folder) is not None:
        return 0
    files.write_json(os.path.join(folder, "worker.json"), {"process_group": os.getpgrp()})
    request = jobs.request_of(folder)
    reporter = Reporter(folder)
    # For as long as this process lives, nobody changes the board's settings under the job.
    users = undo.Users()
    try:
        lease.acquire(
            os.path.basename(folder),
            request["kind"],
            request["owner"],
            expected_s(request["params"]),
            LEASE_TIMEOUT_S,
            reporter.waiting,
        )
        users.share()
    except (lease.LeaseHeld, undo.ConditionsHeld) as error:
        jobs.write_outcome(folder, _failed(error, "", transient=True))
        return 0
    files.write_json(os.path.join(folder, "running"), True)
    period_s = request["params"].get("telemetry_s", sampling.PERIOD_S)
    sampler = sampling.Sampler(folder, period_s) if request["kind"] == "measure" else None
    ended, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ended)
        _run_and_exit(folder, request, reporter)
    os.close(write)
    if not sampling.watch(ended, request["timeout_s"], sampler):
        text = "it took more than the %.0f s that it may take" % request["timeout_s"]
        jobs.write_outcome(folder, _failed(JobTimeout(text), "", transient=False))
        os.killpg(0, signal.SIGKILL)  # the child, all that it has started, and this process
    _, code = os.waitpid(child, 0)
    if jobs.outcome_of(folder) is None:
        number = os.WTERMSIG(code) if os.WIFSIGNALED(code) else None
        exit_code = os.WEXITSTATUS(code) if os.WIFEXITED(code) else None
        jobs.write_outcome(folder, jobs.died(folder, number, exit_code, child))
    users.release()
    # The host that wanted other settings may be gone, and its agent with it.
    undo.restore_unused(os.path.dirname(os.path.dirname(folder)), Board())
    return 0


def expected_s(params):
    """Seconds that a measurement takes at least, or None for other jobs."""
    plan = params.get("plan")
    if plan is None:
        return None
    each_s = plan["warmup_s"] + plan["rounds"] * plan["block_s"]
    return len(params["engines"]) * each_s + plan.get("soak_s", 0.0)


def _run_and_exit(folder, request, reporter):
    # Should the watching process be killed, this one still does not hold the lease for ever.
    signal.alarm(int(request["timeout_s"]) + ALARM_S)
    try:
        jobs.write_outcome(folder, _attempt(folder, request, reporter))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def _failed(error, trace, transient):
    text = {"type": type(error).__name__, "message": str(error), "traceback": trace}
    return {"state": "failed", "exception": text, "transient": transient}


def _is_transient(error):
    """Whether the board's state is to blame, and the same job may succeed another time."""
    if isinstance(error, (blobs.BlobMissing, blobs.BlobDamaged)):
        return True
    return isinstance(error, OSError) and error.errno in files.STORAGE_ERRORS


def _attempt(folder, request, reporter):
    """The outcome of running the job here and now; an exception is an outcome too."""
    cache_dir = os.path.dirname(os.path.dirname(folder))
    kind, params = request["kind"], request["params"]
    reporter.start_s = start_s = time.monotonic()
    try:
        if kind == "trtexec":
            result = _trtexec(params, folder, cache_dir, reporter)
        else:
            run = {"measure": _measure, "profile": _profile, "infer": _infer, "build": _build}[kind]
            engine = importlib.import_module("device_agent.engine_" + params["runtime"])
            result = run(engine, params, folder, cache_dir, reporter)
            result["runtime_version"] = engine.version()[0]
        result["busy_s"] = time.monotonic() - start_s
    except Exception as error:
        return _failed(error, traceback.format_exc(), _is_transient(error))
    return {"state": "done", "kind": kind, "result": result}


def _loadable(engine, sha256, build, folder, cache_dir, reporter):
    """The ``_Loadable`` of a blob; where the runtime builds engines, it is built or looked up."""
    path = blobs.require(cache_dir, sha256)
    if not hasattr(engine, "build"):
        return _Loadable(path, path, None)
    # Boards with other runtimes load none of it.
    from . import trt_build

    made_of = trt_build.network_of(cache_dir, sha256)
    if made_of is not None or engine.is_serialised(path):
        known = made_of is not None and blobs.has(cache_dir, made_of)
        return _Loadable(path, blobs.path_of(cache_dir, made_of) if known else "", None)
    reporter.progress("building an engine", 0, 1)
    facts = engine.build(sha256, build, folder, cache_dir, reporter.again)
    reporter.progress("building an engine", 1, 1)
    return _Loadable(blobs.require(cache_dir, facts["engine"]), path, facts)


def _how(engine, build):
    """The keyword with which a runtime that builds engines is told how to run one."""
    return {"build": build} if hasattr(engine, "build") else {}


def _measure(engine, params, folder, cache_dir, reporter):
    plan = timing.Plan(**params["plan"])
    builds = params.get("builds") or [{}] * len(params["engines"])
    if len(builds) != len(params["engines"]):
        raise ValueError(
            "%d engines and %d builds: there is one for each"
            % (len(params["engines"]), len(builds))
        )
    loadable = [
        _loadable(engine, sha256, build, folder, cache_dir, reporter)
        for sha256, build in zip(params["engines"], builds)  # noqa: B905 (strict= is Python 3.10)
    ]
    reporter.progress("warming up", 0, plan.rounds)
    engines = [
        engine.load(one.path, params["threads"], params["seed"], **_how(engine, build))
        for one, build in zip(loadable, builds)  # noqa: B905
    ]
    parts = [_Parts(one) for one in engines]
    conditions, soaked, timed_from = [], [], []

    def look():
        if plan.soak_s > 0:
            soaked.extend(
                timing.soak(
                    [one.run for one in engines],
                    plan.soak_s,
                    engine.clock,
                    lambda: telemetry.conditions(count_before=count_before),
                    lambda at_s: reporter.progress("seconds soaked", int(at_s), int(plan.soak_s)),
                )
            )
        # After warming up: an idle board's clocks say nothing of those it measures at.
        conditions.append(telemetry.conditions())
        timed_from.append(time.monotonic() - reporter.start_s)

    count_before = telemetry.throttle_count()
    timed = timing.interleave(
        [one.run for one in engines],
        plan,
        engine.clock,
        look,
        lambda done: reporter.progress("measuring", done, plan.rounds),
        [one.take for one in parts],
    )
    after = telemetry.conditions(count_before=count_before)
    found = [
        dict(one._asdict(), sha256=params["engines"][index], batch=engines[index].batch)
        for index, one in enumerate(timed)
    ]
    for into, one in zip(found, soaked):  # noqa: B905 (strict= is Python 3.10)
        into["soak"] = one.wire()
    for into, one, part, loaded in zip(found, loadable, parts, engines):  # noqa: B905
        into.update(part.wire())
        if one.facts is not None:
            into["engine"] = dict(_told(one.facts), layers=loaded.layers)
    for one in engines:
        one.close()
    taken = {"engines": found, "before": conditions[0], "after": after}
    return dict(taken, timed_from_s=timed_from[0], **sampling.collect(folder))


class _Parts:
    """What the calls of an engine are made of, call by call, where the engine can tell."""

    def __init__(self, engine):
        self._names = getattr(engine, "PARTS", ())
        self._ask = getattr(engine, "parts", None)
        self._rows = []

    def take(self):
        """Ask about the latest call."""
        if self._names:
            self._rows.append(self._ask())

    def wire(self):
        """The parts as they travel, or nothing."""
        if not self._names:
            return {}
        columns = zip(*self._rows)  # noqa: B905 (strict= is Python 3.10)
        return {"parts": dict(zip(self._names, columns))}  # noqa: B905


def _told(facts):
    """What of a build travels; only a loaded engine knows how many layers it has."""
    return {
        "sha256": facts["engine"],
        "size_bytes": facts["size_bytes"],
        "build_s": None if facts["cached"] else facts["build_s"],
        "cached": facts["cached"],
        "layers": None,
        "workspace_bytes": facts["workspace_bytes"],
    }


def _build(engine, params, folder, cache_dir, reporter):
    if not hasattr(engine, "build"):
        raise ValueError("%s builds no engines: it loads networks" % params["runtime"])
    build = params.get("build") or {}
    facts = engine.build(params["network"], build, folder, cache_dir, reporter.again)
    names = ("attempts", "log", "strongly_typed", "fast_fp16", "fast_int8", "without_precision")
    found = dict({name: facts[name] for name in names}, engine=_told(facts))
    found["path"] = blobs.path_of(cache_dir, facts["engine"])
    cache = facts["timing_cache"]
    found["timing_cache"] = None
    if cache is not None and blobs.has(cache_dir, cache):
        path = blobs.path_of(cache_dir, cache)
        size_bytes = os.path.getsize(path)
        found["timing_cache"] = {"sha256": cache, "path": path, "size_bytes": size_bytes}
    return found


def _trtexec(params, folder, cache_dir, reporter):
    from . import trt_command

    found = trt_command.execute(
        cache_dir,
        params["network"],
        params.get("build") or {},
        params["measure"],
        folder,
        reporter.again,
    )
    return dict(found, runtime_version=found.pop("version") or "unknown")


def _profile(engine, params, folder, cache_dir, reporter):
    build = params.get("build") or {}
    one = _loadable(engine, params["network"], build, folder, cache_dir, reporter)
    reporter.progress("profiling", 0, 1)
    how = _how(engine, build)
    if how:
        how["network"] = one.network
    return engine.profile(
        one.path, params["threads"], params["seed"], params["runs"], folder, **how
    )


def _infer(engine, params, folder, cache_dir, reporter):
    build = params.get("build") or {}
    one = _loadable(engine, params["network"], build, folder, cache_dir, reporter)
    inputs = blobs.require(cache_dir, params["inputs"])
    outputs = os.path.join(folder, "outputs.npy")
    engine.infer(
        one.path,
        params["threads"],
        inputs,
        params["input_name"],
        outputs,
        lambda done, total: reporter.progress("inferring", done, total),
        **_how(engine, build),
    )
    size_bytes = os.path.getsize(outputs)
    sha256, path = blobs.adopt(cache_dir, outputs)
    return {"outputs": sha256, "path": path, "size_bytes": size_bytes}
