"""A network from a factory and its weights."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib
import importlib.util
import pickle
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import BoardfitError, ConfigError

__all__ = [
    "blaming",
    "keep_freed_memory",
    "load_callable",
    "load_network",
]

# glibc's mallopt: serve everything from the heap, never give it back, grow it in large steps.
_MMAP_MAX, _TRIM_THRESHOLD, _TOP_PAD = -4, -1, -2


def keep_freed_memory() -> None:
    """Make this process keep freed memory, where its C library is glibc.

    torch asks for the same large buffers at every step; with glibc's defaults each is mapped and
    unmapped anew, and a quarter of the training time goes into page faults. The process that is
    measured is another one and keeps its defaults.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 128 << 20)):
        mallopt(option, value)


@contextlib.contextmanager
def blaming(what: str) -> Iterator[None]:
    """ConfigError that names ``what`` for whatever the user's own code raises in here."""
    try:
        yield
    except BoardfitError:
        raise
    except Exception as error:  # the user's own code may raise anything
        raise ConfigError(f"{what} raised {type(error).__name__}: {error}") from error


def load_network(
    spec: str, weights: Path | None, *, kind: str = "network", seed: int | None = None
) -> nn.Module:
    """The network that ``module:factory`` or ``file.py:factory`` builds, in evaluation mode.

    ``weights`` is a state dict (``torch.save``), bare or under ``state_dict``, its keys with or
    without ``module.`` in front, stored in any float type; None leaves the factory's own weights,
    random ones by ``seed`` if given. Raises ConfigError, which calls the network a ``kind``.
    """
    suffix = Path(spec.rpartition(":")[0] or spec).suffix
    if suffix in (".pt2", ".onnx"):
        raise ConfigError(
            f"{spec} is an exported network, and a factory is needed here: an exported network can "
            "be profiled, predicted and quantized, but not pruned; give module:factory or "
            "file.py:factory and --weights"
        )
    factory = load_callable(spec, kind)
    attribute = spec.rpartition(":")[2]
    forked = torch.random.fork_rng(devices=[], enabled=seed is not None)
    with blaming(f"{kind} {spec!r}: {attribute}()"), forked:
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        network = factory()
    if not isinstance(network, nn.Module):
        raise ConfigError(
            f"{kind} {spec!r}: {attribute}() returned {type(network).__name__}, "
            "not a torch.nn.Module"
        )
    if weights is not None:
        _load_weights(network, weights)
    return network.eval()


def load_callable(spec: str, kind: str) -> Callable[..., Any]:
    """What ``module:function`` or ``file.py:function`` names, for errors a ``kind`` of thing."""
    source, colon, attribute = spec.rpartition(":")
    if not colon or not source or not attribute:
        word = "factory" if kind in ("network", "student") else "function"
        raise ConfigError(f"{kind} {spec!r}: expected module:{word} or file.py:{word}")
    is_file = Path(source).suffix == ".py"
    module = _import_file(Path(source), kind) if is_file else _import_module(source, kind)
    found = getattr(module, attribute, None)
    if not callable(found):
        raise ConfigError(f"{kind} {spec!r}: {source} has no function {attribute!r}")
    function: Callable[..., Any] = found
    return function


@contextlib.contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    """``folder`` first on the import path, so that the network's file finds its neighbours."""
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)


def _import_module(name: str, kind: str) -> ModuleType:
    with _on_path(Path()), blaming(f"{kind} module {name!r}"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"{kind} module {name!r}: {error}; for a file, write file.py:factory"
            ) from error


def _import_file(path: Path, kind: str) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"{kind} file {path} does not exist")
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    name = f"boardfit_network_{digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{kind} file {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses in the file look their module up
    with _on_path(path.parent), blaming(f"{kind} file {path}"):
        try:
            spec.loader.exec_module(module)
        except Exception:
            del sys.modules[name]
            raise
    return module


def _load_weights(network: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise ConfigError(f"weights file {path} does not exist")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        raise ConfigError(f"weights file {path} cannot be read: {error}") from error
    except (pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"weights file {path} is corrupt or holds more than tensors (save a state dict): "
            f"{str(error).splitlines()[0]}"
        ) from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ConfigError(f"weights file {path} holds no state dict (a mapping of tensors)")
    state = {str(key).removeprefix("module."): value for key, value in state.items()}

    expected = network.state_dict()
    # num_batches_tracked is bookkeeping that old files lack and evaluation never reads.
    missing = [k for k in expected if k not in state and not k.endswith("num_batches_tracked")]
    surplus = [key for key in state if key not in expected]
    shapes = [
        f"{key} is {tuple(state[key].shape)}, not {tuple(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    problems = [
        f"{what}: {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for what, names in (("missing", missing), ("unknown", surplus), ("wrong shape", shapes))
        if names
    ]
    if problems:
        raise ConfigError(f"weights {path} do not fit the network; {'; '.join(problems)}")
    network.load_state_dict(state, strict=False)
