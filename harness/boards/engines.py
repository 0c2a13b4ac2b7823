"""Which file is sent for a network, and how its engine is built: TensorRT's check before upload."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.boards.plans import EngineRequest
from harness.boards.requests import sha256_of
from harness.records import BoardFacts, BuildSettings
from harness.tensorrt import versions

__all__ = ["Engines", "Sent", "engine_key"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """The file that the board gets for a network, and the settings; None but for TensorRT."""

    path: Path
    build: BuildSettings | None


def engine_key(sent: Sent) -> str:
    """A hash of the file that is sent and how it is built; "" where no engine is built."""
    if sent.build is None:
        return ""
    text = json.dumps([sha256_of(sent.path), asdict(sent.build)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Engines:
    """What a session sends: the files as they are, but for boards with TensorRT.

    There each is checked first, and rewritten where its types have to say the precision. A network
    that was measured is profiled and run as the same engine.
    """

    def __init__(self, facts: BoardFacts) -> None:
        self._facts = facts
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._last: dict[tuple[Path, int], Sent] = {}
        self._made = 0

    def of(self, request: EngineRequest) -> Sent:
        """What to send for a request; BuildError names what the board cannot build."""
        if not versions.is_tensorrt(self._facts.runtime):
            return Sent(path=request.path, build=request.build)
        found = self._prepared(request)
        self._last[self._key(request.path)] = found
        return found

    def again(self, path: Path, build: BuildSettings | None, precision: str | None = None) -> Sent:
        """What to send for a network: in ``precision``, else as it was measured, else in fp32."""
        if precision is not None:
            return self.of(
                EngineRequest(label=path.name, path=path, precision=precision, build=build)
            )
        known = self._last.get(self._key(path))
        if known is not None and build in (None, known.build):
            return known
        return self.of(EngineRequest(label=path.name, path=path, precision="fp32", build=build))

    def close(self) -> None:
        """Remove what was rewritten."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    @staticmethod
    def _key(path: Path) -> tuple[Path, int]:
        # Files of the same name are written anew in the course of a fit.
        return path.resolve(), path.stat().st_mtime_ns

    def _prepared(self, request: EngineRequest) -> Sent:
        # Reading networks takes onnx, which other runtimes do without here.
        from harness.tensorrt import checks, options, preparing

        if request.build is not None:
            checks.require(request.path, self._facts)
            return Sent(path=request.path, build=request.build)
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="boardfit-")
        self._made += 1
        folder = Path(self._folder.name, str(self._made))
        if request.layers:
            found = preparing.for_layers(
                request.path,
                self._facts,
                {one.node: one.precision for one in request.layers},
                folder=folder,
                settings=options.EngineOptions().settings,
            )
        else:
            whole = options.EngineOptions(
                precision="fp16" if request.precision == "fp16" else "fp32"
            )
            found = preparing.prepare(request.path, self._facts, whole, folder=folder)
        return Sent(path=found.path, build=found.build)
