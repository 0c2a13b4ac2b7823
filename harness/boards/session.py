"""One session with a board: facts, files, measurements, profiles and inference.

The same code for this computer and for a board over SSH; only the transport differs. Jobs run
detached on the board: a connection that breaks is opened again and the job attached to by its id.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from harness.boards import answers, bindings, controls
from harness.boards.engines import Engines, engine_key
from harness.boards.link import Link
from harness.boards.outcomes import AnotherTime, result_of
from harness.boards.plans import PRESETS, EngineRequest, MeasurePlan, TrtexecRun
from harness.boards.requests import asking, owner, sha256_of
from harness.boards.tensorrt_findings import how_to_install
from harness.boards.wire import Frame, sensible, validate
from harness.errors import (
    BoardfitError,
    BoardUnreachable,
    ConfigError,
    ProtocolError,
    StableBoardError,
    TransientBoardError,
)
from harness.records import (
    BoardFacts,
    BoardSpec,
    BuildSettings,
    BuiltEngine,
    CacheState,
    Conditions,
    LeaseHolder,
    Measurement,
    Profile,
)

__all__ = ["PRESETS", "EngineRequest", "MeasurePlan", "Session"]

# Importing a runtime takes ten seconds and more on a cold SD card; the agent gives up at 120.
PROBE_TIMEOUT_S = 150.0
# The agent sends a heartbeat a second while one waits.
SILENCE_S = 30.0
WAIT_S = 3600.0
# How often a job is run that died of the board's state: killed, restarted, its disk full.
ATTEMPTS = 3
SEED = 0


class Session:
    """A connection to a board and the agent that runs there, used as a context manager.

    ``on_event`` is called with progress, heartbeats and reconnections. ``nonce`` sets this
    session's jobs apart from others': a caller that keeps it (in a result folder) and asks for the
    same jobs in the same order finds those that ran to their end without it.
    """

    def __init__(
        self,
        spec: BoardSpec,
        *,
        on_event: Callable[[dict[str, object]], None] | None = None,
        nonce: str | None = None,
    ) -> None:
        bindings.check_runtime(spec)
        self._spec = spec
        self._on_event = on_event
        self._nonce = nonce or secrets.token_hex(8)
        self._asked: Counter[str] = Counter()
        self._present: set[str] = set()
        self._facts: BoardFacts | None = None
        self._engines: Engines | None = None
        self._link = Link(spec, self._tell)
        self._hold = controls.Hold(spec, self._ask, self._tell)

    def __enter__(self) -> Session:
        try:
            self._link.open()
        except BoardUnreachable:
            raise  # a board that is off is told at once
        except TransientBoardError:
            pass  # it is there, and the connection broke: below that is tried again
        try:
            self._facts = self._link.lasting(self._probe)
            self._engines = Engines(self._facts)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._link.is_open:
            # Else the board puts its settings back itself, when its agent or the job ends.
            with contextlib.suppress(BoardfitError):
                self._hold.release(self._link.call)
        self.close()

    @property
    def spec(self) -> BoardSpec:
        """The inventory's entry that the session was made for."""
        return self._spec

    @property
    def facts(self) -> BoardFacts:
        """What the board is, as probed when the session was opened."""
        if self._facts is None:
            raise RuntimeError("open the session first: with Session(spec) as session")
        return self._facts

    @property
    def _sending(self) -> Engines:
        if self._engines is None:
            raise RuntimeError("open the session first: with Session(spec) as session")
        return self._engines

    def close(self) -> None:
        """Let go of the board; jobs that still run there go on."""
        self._link.close()
        if self._engines is not None:
            self._engines.close()

    def _tell(self, event: Frame) -> None:
        if self._on_event is not None:
            self._on_event(event)

    def _probe(self) -> BoardFacts:
        if self._spec.runtime == bindings.RUNTIME:
            found = bindings.probe(
                lambda method, params: self._link.call(method, params, PROBE_TIMEOUT_S), self._spec
            )
        else:
            found = self._link.call("probe", {"runtime": self._spec.runtime}, PROBE_TIMEOUT_S)
        reason = found.pop("runtime_error")
        if found["runtime_version"] is None:
            raise StableBoardError(
                f"board {self._spec.name} cannot load {self._spec.runtime} with "
                f"{self._spec.python} (Python {found['python']}): {reason}. Install it there "
                f"({how_to_install(self._spec.runtime, self._spec.python)}), or set python = "
                '"..." for the board in boards.toml to an interpreter that has it'
            )
        providers = tuple(found.pop("providers"))
        gpu = answers.gpu(found.pop("gpu", None))
        return BoardFacts(
            board=self._spec.name,
            agent_hash=self._link.agent_hash,
            providers=providers,
            gpu=gpu,
            **found,
        )

    def _ask(self, method: str, params: Frame, timeout_s: float) -> Frame:
        return self._link.lasting(lambda: self._link.call(method, params, timeout_s))

    def conditions(self) -> Conditions:
        """The state of the board now."""
        return answers.conditions(self._link.lasting(lambda: self._link.call("conditions", {})))

    def lease(self) -> LeaseHolder | None:
        """Who holds the board's lease now; None if nobody does."""
        found = self._link.lasting(lambda: self._link.call("lease", {}))["holder"]
        return None if found is None else LeaseHolder(**found)

    def clean(self, *, keep_s: float = 0.0, unfetched: bool = False) -> CacheState:
        """Remove from the board's cache what nobody has used for ``keep_s``.

        What living jobs need stays, and results that no host has fetched unless ``unfetched``.
        """
        params = {"keep_s": keep_s, "unfetched": unfetched}
        return CacheState(**self._link.lasting(lambda: self._link.call("clean", params)))

    # --- files ----------------------------------------------------------------------------------

    def put(self, path: Path) -> str:
        """SHA-256 of a file, which is on the board afterwards; sent only if it was not there."""
        sha256 = sha256_of(path)
        if sha256 not in self._present:
            self._link.lasting(lambda: self._upload(path, sha256))
            self._present.add(sha256)
        return sha256

    def _upload(self, path: Path, sha256: str) -> None:
        if self._link.call("blob_has", {"sha256": sha256})["present"]:
            return
        size_bytes = path.stat().st_size
        place = {"sha256": sha256, "size_bytes": size_bytes, "limit_bytes": self._spec.cache_bytes}
        begun = self._link.call("blob_begin", place)

        def tell(sent: int) -> None:
            self._tell({"kind": "progress", "what": "sending", "done": sent, "total": size_bytes})

        arrived = self._link.transport.put(
            path, begun["path"], offset=begun["offset"], on_sent=tell
        )
        self._link.call("blob_commit", {"sha256": sha256, "arrived": arrived})

    def _fetch(self, remote: str, sha256: str, local: Path) -> None:
        self._link.transport.get(remote, local)
        found = sha256_of(local)
        if found != sha256:
            raise TransientBoardError(
                f"{remote} arrived damaged: SHA-256 {found}, the board says {sha256}"
            )

    # --- jobs -----------------------------------------------------------------------------------

    def _job_id(self, *what: object) -> str:
        text = json.dumps(what, sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def _run(
        self,
        kind: str,
        params: Frame,
        *,
        files: Sequence[Path],
        campaign: str = "",
        duration_s: float = 0.0,
    ) -> Frame:
        """Result of a job on the board, which is attached to again where the connection breaks.

        The same request with the same nonce, campaign and number is the same job, also for a host
        that starts anew. What died of the board's state is sent and tried again.
        """
        if (self._spec.runtime == bindings.RUNTIME) != (kind == "trtexec"):
            raise ConfigError(
                f"board {self._spec.name} runs {self._spec.runtime}: trtexec profiles one network "
                "at a time (boardfit profile); all else needs TensorRT's Python bindings there, "
                'and runtime = "tensorrt"'
            )
        params = {"nonce": self._nonce, **params}
        if kind != "trtexec":
            params["runtime"] = self._spec.runtime
        if kind in ("measure", "profile", "infer"):
            params["threads"] = self._spec.threads
        validate(f"{kind}.params", params)
        request = {
            "kind": kind,
            "params": params,
            "owner": owner(),
            "timeout_s": self._spec.job_timeout_s + duration_s,
        }
        asked = json.dumps([kind, params, campaign], sort_keys=True, allow_nan=False)
        self._asked[asked] += 1
        attempt = 1
        while True:
            job_id = self._job_id(asked, self._asked[asked], attempt)
            try:
                return result_of(kind, self._attend(job_id, request), board=self._spec.name)
            except AnotherTime as error:
                if attempt == ATTEMPTS:
                    text = f"{error} (tried {ATTEMPTS} times)"
                    kind_of_error = StableBoardError if error.died else TransientBoardError
                    raise kind_of_error(text) from error
                self._tell({"kind": "retry", "attempt": attempt, "reason": str(error)})
            attempt += 1
            self._present.clear()
            for path in files:
                self.put(path)

    def _attend(self, job_id: str, request: Frame) -> Frame:
        """The outcome of a job, submitted or attached to and waited for."""
        seen = 0

        def on_event(event: Frame) -> None:
            nonlocal seen
            seen = max(seen, event.get("seq", 0))
            self._tell({"job": job_id, **event})

        def attend() -> Frame:
            state = self._link.call("submit", {"job_id": job_id, **request})
            while state["state"] in ("waiting", "running"):
                wait = {"job_id": job_id, "after": seen, "timeout_s": WAIT_S}
                state = self._link.call("wait", wait, SILENCE_S, on_event=on_event)
            return self._link.call("result", {"job_id": job_id})

        try:
            return self._link.lasting(attend)
        except KeyboardInterrupt:
            with contextlib.suppress(BoardfitError):
                self._link.call("cancel", {"job_id": job_id})
            raise

    def measure(
        self, engines: Sequence[EngineRequest], *, plan: MeasurePlan, campaign: str
    ) -> tuple[Measurement, ...]:
        """One measurement for each engine, all taken in the same interleaved rounds.

        With TensorRT every file is checked before it is sent (``boards.engines``).
        """
        if not engines:
            raise ValueError("there is no engine to measure")
        sent = [self._sending.of(engine) for engine in engines]
        hashes = [self.put(one.path) for one in sent]
        warnings = self._hold.ensure()
        params = {"seed": SEED, "engines": hashes, "plan": asdict(plan)}
        if any(one.build is not None for one in sent):
            builds = [one.build or BuildSettings() for one in sent]
            params["builds"] = [answers.build(one) for one in builds]
        found = self._run(
            "measure",
            {**params, "telemetry_s": self._spec.telemetry_s},
            files=[one.path for one in sent],
            campaign=campaign,
            duration_s=plan.duration_s * len(engines) + plan.soak_s,
        )
        with sensible():
            before, after = answers.conditions(found["before"]), answers.conditions(found["after"])
        if [one["sha256"] for one in found["engines"]] != hashes:
            raise ProtocolError("the agent measured other engines than those it was asked for")
        settings = controls.settings_of(found.get("in_force"))
        warnings += self._hold.check(settings)
        mode = None if settings is None else settings.power_mode
        taken_at = datetime.now(timezone.utc).isoformat(timespec="seconds")
        with sensible():
            return tuple(
                Measurement(
                    label=engine.label,
                    # A file that was rewritten for the board is still that network.
                    network_sha256=sha256_of(engine.path),
                    runtime=self._spec.runtime,
                    runtime_version=found["runtime_version"],
                    precision=engine.precision,
                    batch=timed["batch"],
                    threads=self._spec.threads,
                    samples_s=tuple(timed["samples_s"]),
                    rounds=tuple(timed["rounds"]),
                    warmup_s=tuple(timed["warmup_s"]),
                    before=before,
                    after=after,
                    board=self._spec.name,
                    campaign=campaign,
                    taken_at=taken_at,
                    power_mode=mode or self.facts.power_mode,
                    machine=f"{self.facts.cpu_model}, {self.facts.cores} cores",
                    agent_hash=self.facts.agent_hash,
                    busy_s=found["busy_s"],
                    soak=answers.soak(timed.get("soak")),
                    telemetry=answers.telemetry(found.get("telemetry")),
                    settings=settings,
                    warnings=warnings,
                    timed_from_s=found.get("timed_from_s"),
                    parts=answers.parts(timed.get("parts")),
                    engine=answers.engine(timed.get("engine")),
                )
                for engine, timed in zip(engines, found["engines"], strict=True)
            )

    def engine_key(self, path: Path, *, precision: str | None = None) -> str:
        """What sets the network's engine apart from others of the same file; see ``Profile``."""
        return engine_key(self._sending.again(path, None, precision))

    def profile(
        self,
        path: Path,
        *,
        runs: int = 60,
        build: BuildSettings | None = None,
        precision: str | None = None,
    ) -> Profile:
        """Per-kernel times of a network, from the runtime's own profiler.

        Of the engine as it was measured last, unless ``precision`` says for what to make it.
        """
        sent = self._sending.again(path, build, precision)
        self._hold.ensure()
        params = {"seed": SEED, "network": self.put(sent.path), "runs": runs, **asking(sent.build)}
        found = self._run("profile", params, files=[sent.path])
        trace = found.get("trace")
        with sensible():
            return Profile(
                network_sha256=sha256_of(path),
                runtime=self._spec.runtime,
                runtime_version=found["runtime_version"],
                kernels=tuple(answers.kernel(one) for one in found["kernels"]),
                runs_s=tuple(found.get("runs_s", ())),
                trace=None if trace is None else answers.trace(trace),
                engine_key=engine_key(sent),
            )

    def build(self, request: EngineRequest, into: Path) -> BuiltEngine:
        """The engine of a network, built or found on the board, and fetched to ``into``.

        Beside it lies the timing cache, with the suffix ``.timing``, where the version has one.
        """
        sent = self._sending.of(request)
        params = {"network": self.put(sent.path), **asking(sent.build)}
        found = self._run("build", params, files=[sent.path])
        self._link.lasting(lambda: self._fetch(found["path"], found["engine"]["sha256"], into))
        cache = found["timing_cache"]
        if cache is not None:
            beside = into.with_suffix(".timing")
            self._link.lasting(lambda: self._fetch(cache["path"], cache["sha256"], beside))
        return answers.built(found, build=sent.build or BuildSettings())

    def trtexec(
        self, request: EngineRequest, *, plan: MeasurePlan, percentile: float, into: Path
    ) -> TrtexecRun:
        """What one run of trtexec left, fetched into a folder: log and exported files."""
        sent = self._sending.of(request)
        measure = {
            "warmup_s": plan.warmup_s,
            "duration_s": plan.rounds * plan.block_s,
            "iterations": plan.rounds * plan.block_min,
            "percentile": percentile,
        }
        self._hold.ensure()
        params = {"network": self.put(sent.path), "measure": measure, **asking(sent.build)}
        found = self._run("trtexec", params, files=[sent.path], duration_s=plan.duration_s)
        paths = {}
        for name, one in {"log": found["log"], **found["files"]}.items():
            paths[name] = into / name
            self._link.lasting(partial(self._fetch, one["path"], one["sha256"], into / name))
        return TrtexecRun(files=paths, unproven=tuple(found["unproven"]), build=sent.build)

    def infer(
        self,
        path: Path,
        inputs: np.ndarray[Any, Any],
        *,
        input_name: str | None = None,
        build: BuildSettings | None = None,
    ) -> np.ndarray[Any, Any]:
        """The first output for every one of ``inputs`` (n, ...), run one by one on the board."""
        if inputs.ndim < 1 or not len(inputs):
            raise ValueError(f"inputs of shape {inputs.shape} hold no input")
        sent = self._sending.again(path, build)
        network = self.put(sent.path)
        with tempfile.TemporaryDirectory(prefix="boardfit-") as folder:
            given, taken = Path(folder, "inputs.npy"), Path(folder, "outputs.npy")
            np.save(given, inputs, allow_pickle=False)
            params = {"network": network, "inputs": self.put(given), "input_name": input_name}
            params |= asking(sent.build)
            found = self._run("infer", params, files=[sent.path, given])
            self._link.lasting(lambda: self._fetch(found["path"], found["outputs"], taken))
            with sensible(), taken.open("rb") as stream:
                # Not np.load, which would also open an archive.
                outputs: np.ndarray[Any, Any] = np.lib.format.read_array(stream, allow_pickle=False)
        return outputs
