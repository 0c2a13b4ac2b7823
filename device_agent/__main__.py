"""The agent: one JSON object a line in, one result, exception, error or event a line out.

``python -m device_agent serve CACHE_DIR`` speaks the wire of wire_v1.json on stdin and stdout until
stdin closes; ``worker JOB_DIR`` runs one job; ``runtime NAME`` prints a runtime's version.
"""

import contextlib
import importlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
import traceback

from . import (
    blobs,
    board,
    cleaning,
    controls,
    files,
    jobs,
    lease,
    telemetry,
    undo,
    wire,
    worker,
)

HERE = os.path.dirname(os.path.abspath(__file__))
HEARTBEAT_S = 1.0
# Looking often finds the end of short jobs soon; long ones are left alone to measure.
POLL_S = (0.05, 0.25)
RUNTIME_TIMEOUT_S = 120


class Agent:
    """Serves requests one after the other."""

    def __init__(self, cache_dir, stdin, stdout):
        schema = wire.load_schema()
        self._definitions = schema["$defs"]
        self._limit_bytes = schema["x-max-frame-bytes"]
        self._protocol = schema["x-protocol"]
        self._cache_dir = cache_dir
        self._lines = wire.Lines(stdin, self._limit_bytes)
        self._stdout = stdout
        self._id = None
        self._board = board.Board()
        self._users = undo.Users()

    def serve(self):
        """Answer requests until stdin closes."""
        hello = {
            "protocol": self._protocol,
            "agent_hash": wire.agent_hash(),
            "cache_dir": self._cache_dir,
            "pid": os.getpid(),
        }
        # The newline before it ends whatever a login script has printed without one.
        self._write(b"\nboardfit-agent " + wire.encode(hello))
        with contextlib.suppress(BrokenPipeError):
            while self._serve_one():
                pass

    def _serve_one(self):
        """Whether there was a request, which has been answered."""
        self._id = None
        try:
            line = self._lines.next()
            if line is None:
                return False
            if line.strip():
                self._reply("result", self._answer(line))
        except wire.Misuse as misuse:
            self._reply("error", {"code": misuse.code, "message": str(misuse)})
        except BrokenPipeError:
            raise
        except Exception as error:
            self._reply_exception(error)
        return True

    def _reply_exception(self, error):
        """An error with a code where the host can do something about it, else an exception."""
        code = None
        if isinstance(error, jobs.JobIdReused):
            code = "job_id_reused"
        elif isinstance(error, (blobs.BlobMissing, blobs.BlobDamaged)):
            code = "blob"
        elif isinstance(error, OSError) and error.errno in files.STORAGE_ERRORS:
            code = "storage"
        if code is not None:
            self._reply("error", {"code": code, "message": str(error)})
            return
        text = {
            "type": type(error).__name__,
            "message": str(error),
            "traceback": traceback.format_exc(),
        }
        self._reply("exception", text)

    def _answer(self, line):
        try:
            request = wire.parse(line)
        except (ValueError, RecursionError) as error:
            raise wire.Misuse("not_json", "a request is one JSON object a line: %s" % error)
        if not isinstance(request, dict) or set(request) != {"id", "method", "params"}:
            raise wire.Misuse("bad_request", "a request has id, method and params, no more")
        if type(request["id"]) is not int:
            raise wire.Misuse("bad_request", "a request's id is an integer")
        self._id = request["id"]
        method = request["method"]
        definitions = self._definitions
        if method not in definitions["request"]["properties"]["method"]["enum"]:
            raise wire.Misuse("unknown_method", "this agent has no method " + wire.shown(method))
        wire.check(request["params"], definitions[method + ".params"], method, definitions)
        if method == "submit":
            kind = request["params"]["kind"]
            wire.check(
                request["params"]["params"], definitions[kind + ".params"], kind, definitions
            )
        return getattr(self, "_do_" + method)(**request["params"])

    def _write(self, data):
        while data:
            data = data[os.write(self._stdout, data) :]

    def _reply(self, name, content):
        frame = wire.encode({"id": self._id, name: content})
        if len(frame) > self._limit_bytes:
            text = "the reply has %d bytes; a frame is at most %d" % (len(frame), self._limit_bytes)
            error = {"code": "oversize", "message": text}
            frame = wire.encode({"id": self._id, "error": error})
        self._write(frame)

    def _do_probe(self, runtime):
        mode = board.power_mode(self._board)
        found = dict(telemetry.facts(), **probe_runtime(runtime))
        return dict(found, power_mode=None if mode is None else mode["name"])

    def _do_inspect(self, section):
        # Only the doctor asks: the agent starts without it.
        from . import inspection

        return {"section": section, "facts": inspection.inspect(section, self._cache_dir)}

    def _do_conditions(self):
        return telemetry.conditions()

    def _do_controls_state(self):
        return controls.state_of(self._board)

    def _do_controls_apply(self, wanted, change):
        problems = controls.apply(wanted, self._cache_dir, self._board, self._users, change)
        return {"problems": problems, "in_force": controls.summary(self._board)}

    def _do_controls_restore(self):
        problems = self.let_go()
        return {"problems": problems, "pending": undo.read_record(self._cache_dir) is not None}

    def let_go(self):
        """Rely on the board's settings no more; what could not be put back, in sentences."""
        self._users.release()
        return undo.restore_unused(self._cache_dir, self._board) or []

    def _do_blob_has(self, sha256):
        return {"present": blobs.has(self._cache_dir, sha256)}

    def _do_blob_begin(self, sha256, size_bytes, limit_bytes):
        needed = jobs.needed_blobs(self._cache_dir)
        path, offset = blobs.begin(self._cache_dir, sha256, size_bytes, limit_bytes, needed)
        return {"path": path, "offset": offset}

    def _do_blob_commit(self, sha256, arrived):
        return {"size_bytes": blobs.commit(self._cache_dir, sha256, arrived)}

    def _do_clean(self, keep_s, unfetched):
        removed = cleaning.sweep(self._cache_dir, wire.agent_hash(), keep_s, unfetched)
        found = cleaning.usage(self._cache_dir)
        return dict(found, removed=removed.counts, freed_bytes=removed.freed_bytes)

    def _do_lease(self):
        return {"holder": lease.holder()}

    def _do_retire(self, pids):
        return {"ended": [pid for pid in pids if retire(pid)]}

    def _do_submit(self, job_id, kind, params, owner, timeout_s):
        return jobs.submit(self._cache_dir, job_id, kind, params, owner, timeout_s)

    def _do_status(self, job_id):
        return jobs.status(self._cache_dir, job_id)

    def _do_cancel(self, job_id):
        return jobs.cancel(self._cache_dir, job_id)

    def _do_wait(self, job_id, after, timeout_s):
        """Streams events until the job ends, time is up, or another request (cancel) arrives."""
        start_s = beat_s = time.perf_counter()
        while True:
            # The state first: events that were written before the end are not missed.
            state = jobs.status(self._cache_dir, job_id)
            for event in jobs.events(jobs.folder_of(self._cache_dir, job_id), after):
                after = event["seq"]
                with contextlib.suppress(wire.Misuse):  # the disk has damaged it
                    wire.check(event, self._definitions["event"], "event", self._definitions)
                    self._reply("event", event)
            now_s = time.perf_counter()
            if state["state"] not in ("waiting", "running") or now_s - start_s >= timeout_s:
                return state
            if now_s - beat_s >= HEARTBEAT_S:
                beat_s = now_s
                self._reply("event", {"kind": "heartbeat", "state": state["state"]})
            pause_s = POLL_S[now_s - start_s > 2.0]
            if self._lines.pending(pause_s, jobs.ended_of(job_id)):
                return state

    def _do_result(self, job_id):
        state = jobs.status(self._cache_dir, job_id)["state"]
        if state in ("waiting", "running"):
            raise wire.Misuse("bad_request", "job %s is %s: wait for its end" % (job_id, state))
        return jobs.fetch(self._cache_dir, job_id)


def retire(pid):
    """Whether ``pid`` was an agent that a broken link left behind, which is now told to end."""
    try:
        with open("/proc/%d/cmdline" % pid, "rb") as stream:
            words = stream.read().split(b"\0")
        if pid == os.getpid() or not any(b"boardfit-bootstrap" in word for word in words):
            return False
        os.kill(pid, signal.SIGTERM)
    except OSError:
        return False
    return True


def probe_runtime(runtime):
    """Version, providers and GPU of a runtime, or why it cannot be loaded.

    In a process of its own: importing it may end in a signal (numpy on a Nano without
    OPENBLAS_CORETYPE) and would stay in the agent's memory while engines are measured.
    """
    found = {"runtime": runtime, "runtime_version": None, "runtime_error": None, "providers": []}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "device_agent", "runtime", runtime],
            cwd=os.path.dirname(HERE),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=RUNTIME_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        found["runtime_error"] = "importing it took more than %d s" % RUNTIME_TIMEOUT_S
        return found
    if done.returncode == 0:
        answer = json.loads(done.stdout.decode().splitlines()[-1])
        found["runtime_version"], found["providers"] = answer[:2]
        found.update(answer[2])
    elif done.returncode < 0:
        found["runtime_error"] = "importing it ended in %s" % signal.Signals(-done.returncode).name
    else:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        found["runtime_error"] = lines[-1] if lines else "exit code %d" % done.returncode
    return found


def main(argv):
    """Exit code of ``serve CACHE_DIR``, ``worker JOB_DIR`` or ``runtime NAME``."""
    command, argument = argv
    if platform.machine() == "aarch64":
        # numpy 1.19.5's OpenBLAS takes a Cortex-A57 for something newer and dies of SIGILL.
        os.environ.setdefault("OPENBLAS_CORETYPE", "ARMV8")
    if command == "worker":
        return worker.work(argument)
    # Native libraries print to file descriptor 1; only the agent may write to the stream.
    stdout = os.dup(1)
    os.dup2(2, 1)
    if command == "runtime":
        engine = importlib.import_module("device_agent.engine_" + argument)
        gpu = {"gpu": engine.gpu()} if hasattr(engine, "gpu") else {}
        os.write(stdout, json.dumps(list(engine.version()) + [gpu]).encode() + b"\n")
        return 0
    cache_dir = os.path.abspath(os.path.expanduser(argument))
    os.makedirs(cache_dir, exist_ok=True)
    with contextlib.suppress(OSError):
        os.utime(os.path.dirname(HERE), None)  # it is in use: see cleaning
    cleaning.sweep(cache_dir, wire.agent_hash())
    stdin = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    agent = Agent(cache_dir, stdin, stdout)
    # What an agent or a job has set that died before it could put it back.
    _tell(agent.let_go())
    try:
        agent.serve()
    finally:
        _tell(agent.let_go())
    cleaning.sweep(cache_dir, wire.agent_hash())
    return 0


def _tell(problems):
    for problem in problems:
        sys.stderr.write("boardfit: %s\n" % problem)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
