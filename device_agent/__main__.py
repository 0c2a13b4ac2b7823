"""The agent: one JSON object a line in, one result, exception, error or event a line out.

``python -m device_agent serve CACHE_DIR`` speaks the wire of wire_v1.json on stdin and stdout until
stdin closes; ``worker JOB_DIR`` runs one job; ``runtime NAME`` prints a runtime's version.
"""

import hashlib
import importlib
import json
import os
import platform
import re
import select
import signal
import subprocess
import sys
import time
import traceback

from . import blobs, board, controls, jobs, telemetry, undo

HERE = os.path.dirname(os.path.abspath(__file__))
HEARTBEAT_S = 1.0
# Looking often finds the end of short jobs soon; long ones are left alone to measure.
POLL_S = (0.05, 0.25)
RUNTIME_TIMEOUT_S = 120
JSON_TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
}


class Misuse(Exception):
    """A request that the wire does not allow; ``code`` is one of the schema's."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


def agent_hash():
    """SHA-256 over names, sizes and contents of the agent's files; the host computes the same."""
    digest = hashlib.sha256()
    for name in sorted(os.listdir(HERE)):
        if name.endswith((".py", ".json")):
            with open(os.path.join(HERE, name), "rb") as stream:
                content = stream.read()
            digest.update(b"%s\0%d\0" % (name.encode(), len(content)) + content)
    return digest.hexdigest()


def load_wire():
    """The schema that host and agent share."""
    with open(os.path.join(HERE, "wire_v1.json")) as stream:
        return json.load(stream)


def _refuse_constant(text):
    raise ValueError("%s is no JSON" % text)


class Lines:
    """Frames from a file descriptor; reading and looking ahead share one buffer."""

    def __init__(self, descriptor, limit_bytes):
        self._descriptor = descriptor
        self._limit_bytes = limit_bytes
        self._buffer = bytearray()
        self._ended = False

    def pending(self, timeout_s):
        """Whether there is something to read (or the end) within ``timeout_s``."""
        if self._ended or b"\n" in self._buffer:
            return True
        return bool(select.select([self._descriptor], [], [], timeout_s)[0])

    def next(self):
        """The next line, or None at the end; an oversize one is skipped and is a ``Misuse``."""
        skipped, searched = False, 0
        while True:
            end = self._buffer.find(b"\n", searched)
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                if skipped or len(line) > self._limit_bytes:
                    raise Misuse("oversize", "a frame is at most %d bytes" % self._limit_bytes)
                return line
            if self._ended:
                return None
            if len(self._buffer) > self._limit_bytes:
                self._buffer.clear()
                skipped = True
            searched = len(self._buffer)
            data = os.read(self._descriptor, 1 << 16)
            self._ended = not data
            self._buffer += data


class Agent:
    """Serves requests one after the other."""

    def __init__(self, cache_dir, stdin, stdout):
        wire = load_wire()
        self._definitions = wire["$defs"]
        self._limit_bytes = wire["x-max-frame-bytes"]
        self._protocol = wire["x-protocol"]
        self._cache_dir = cache_dir
        self._lines = Lines(stdin, self._limit_bytes)
        self._stdout = stdout
        self._id = None
        self._board = board.Board()
        self._users = undo.Users(cache_dir)

    def serve(self):
        """Answer requests until stdin closes."""
        hello = {
            "protocol": self._protocol,
            "agent_hash": agent_hash(),
            "cache_dir": self._cache_dir,
            "pid": os.getpid(),
        }
        # The newline before it ends whatever a login script has printed without one.
        self._write(b"\nboardfit-agent " + json.dumps(hello).encode() + b"\n")
        while True:
            self._id = None
            try:
                line = self._lines.next()
                if line is None:
                    return
                if line.strip():
                    self._reply("result", self._answer(line))
            except Misuse as misuse:
                self._reply("error", {"code": misuse.code, "message": str(misuse)})
            except jobs.JobIdReused as error:
                self._reply("error", {"code": "job_id_reused", "message": str(error)})
            except BrokenPipeError:
                return
            except Exception as error:
                text = {
                    "type": type(error).__name__,
                    "message": str(error),
                    "traceback": traceback.format_exc(),
                }
                self._reply("exception", text)

    def _answer(self, line):
        try:
            request = json.loads(line.decode(), parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise Misuse("not_json", "a request is one JSON object a line: %s" % error)
        if not isinstance(request, dict) or set(request) != {"id", "method", "params"}:
            raise Misuse("bad_request", "a request has id, method and params, and nothing else")
        if type(request["id"]) is not int:
            raise Misuse("bad_request", "a request's id is an integer")
        self._id = request["id"]
        method = request["method"]
        if method not in self._definitions["request"]["properties"]["method"]["enum"]:
            raise Misuse("unknown_method", "this agent has no method %r" % (method,))
        self._check(request["params"], self._definitions[method + ".params"], method)
        if method == "submit":
            kind = request["params"]["kind"]
            self._check(request["params"]["params"], self._definitions[kind + ".params"], kind)
        return getattr(self, "_do_" + method)(**request["params"])

    def _check(self, value, schema, where):
        """Refuse what the schema does not allow; the host has checked it in full."""
        while "$ref" in schema:
            schema = self._definitions[schema["$ref"].rpartition("/")[2]]
        kinds = schema.get("type", [])
        kinds = [kinds] if isinstance(kinds, str) else kinds
        allowed = [JSON_TYPES[kind] for kind in kinds if kind != "null"]
        wrong = not isinstance(value, tuple(allowed)) if allowed else False
        if wrong and not (value is None and "null" in kinds):
            raise Misuse("bad_params", "%s: %s is wanted" % (where, " or ".join(kinds)))
        if "enum" in schema and value not in schema["enum"]:
            raise Misuse("bad_params", "%s: %r is none of %s" % (where, value, schema["enum"]))
        if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
            raise Misuse("bad_params", "%s: %r does not fit" % (where, value[:80]))
        if isinstance(value, dict) and "properties" in schema:
            missing = set(schema.get("required", ())) - set(value)
            unknown = set(value) - set(schema["properties"])
            if missing or (unknown and not schema.get("additionalProperties", True)):
                names = ", ".join(sorted(missing or unknown))
                word = "missing" if missing else "unknown"
                raise Misuse("bad_params", "%s: %s: %s" % (where, word, names))
            for name in value:
                self._check(value[name], schema["properties"][name], "%s.%s" % (where, name))

    def _write(self, data):
        while data:
            data = data[os.write(self._stdout, data) :]

    def _reply(self, name, content):
        frame = json.dumps({"id": self._id, name: content}, allow_nan=False).encode() + b"\n"
        if len(frame) > self._limit_bytes:
            text = "the reply has %d bytes; a frame is at most %d" % (len(frame), self._limit_bytes)
            error = {"code": "oversize", "message": text}
            frame = json.dumps({"id": self._id, "error": error}).encode() + b"\n"
        self._write(frame)

    def _do_probe(self, runtime):
        return dict(telemetry.facts(), **probe_runtime(runtime))

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

    def _do_blob_begin(self, sha256, size_bytes):
        token, path = blobs.begin(self._cache_dir, sha256, size_bytes)
        return {"token": token, "path": path}

    def _do_blob_commit(self, sha256, token):
        return {"size_bytes": blobs.commit(self._cache_dir, sha256, token)}

    def _do_submit(self, job_id, kind, params):
        return jobs.submit(self._cache_dir, job_id, kind, params)

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
                self._reply("event", event)
                after = event["seq"]
            now_s = time.perf_counter()
            if state["state"] not in ("waiting", "running") or now_s - start_s >= timeout_s:
                return state
            if now_s - beat_s >= HEARTBEAT_S:
                beat_s = now_s
                self._reply("event", {"kind": "heartbeat", "state": state["state"]})
            if self._lines.pending(POLL_S[now_s - start_s > 2.0]):
                return state

    def _do_result(self, job_id):
        state = jobs.status(self._cache_dir, job_id)["state"]
        if state in ("waiting", "running"):
            raise Misuse("bad_request", "job %s is %s: wait for its end" % (job_id, state))
        return jobs.outcome_of(jobs.folder_of(self._cache_dir, job_id))


def probe_runtime(runtime):
    """Version and providers of a runtime, or why it cannot be loaded.

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
        found["runtime_version"], found["providers"] = answer
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
        return jobs.work(argument)
    # Native libraries print to file descriptor 1; only the agent may write to the stream.
    stdout = os.dup(1)
    os.dup2(2, 1)
    if command == "runtime":
        engine = importlib.import_module("device_agent.engine_" + argument)
        os.write(stdout, json.dumps(engine.version()).encode() + b"\n")
        return 0
    cache_dir = os.path.abspath(os.path.expanduser(argument))
    os.makedirs(cache_dir, exist_ok=True)
    jobs.sweep(cache_dir, time.time())
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
    return 0


def _tell(problems):
    for problem in problems:
        sys.stderr.write("boardfit: %s\n" % problem)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
