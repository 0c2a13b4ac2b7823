"""What the fuzz tests draw from: hostile JSON, mutated requests, and how many examples to try.

The examples are the same at every run; ``BOARDFIT_FUZZ_EXAMPLES`` is a factor on their number, and
with it they are drawn anew.
"""

from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests.fuzz.properties import REQUESTS, SHA256

Test = Callable[..., None]
FACTOR = float(os.environ.get("BOARDFIT_FUZZ_EXAMPLES", "0"))
# Names that a shell, a path or an option parser would take for more than a name.
NAMES = (
    "../../../canary",
    "/etc/passwd",
    "$(touch canary)",
    "`touch canary`",
    "'; touch canary; '",
    '" & touch canary & "',
    "-oProxyCommand=touch canary",
    "--help",
    "a\nb",
    "a\0b",
    "~/x",
    "ünï ☃",
    "\ud800",
    "%s%n",
    "__class__",
    f"{SHA256}\n",
    "",
)
NUMBERS = (0, -1, 1, 1.0, 0.5, -0.0, 1e308, float("inf"), float("nan"), 2**31, 2**63, 10**50)


def fuzzed(examples: int) -> Callable[[Test], Test]:
    """Settings for a test: so many examples, whatever the time each takes."""
    return settings(
        max_examples=round(examples * (FACTOR or 1.0)),
        deadline=None,
        derandomize=not FACTOR,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def scalars() -> st.SearchStrategy[Any]:
    return st.one_of(
        st.none(),
        st.booleans(),
        st.sampled_from(NUMBERS),
        st.integers(),
        st.floats(),
        st.sampled_from(NAMES),
        st.text(max_size=20),
    )


def values() -> st.SearchStrategy[Any]:
    """What JSON and TOML can say, and NaN."""
    return st.recursive(
        scalars(),
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.dictionaries(
                st.one_of(st.sampled_from(NAMES), st.text(max_size=8)), inner, max_size=4
            ),
        ),
        max_leaves=8,
    )


def deep(depth: int = 100_000) -> bytes:
    """JSON that is nested deeper than anybody reads."""
    return b"[" * depth + b"]" * depth


def _places(node: Any) -> list[tuple[Any, Any]]:
    """Every container in a document with each of its keys."""
    keys = (
        list(node) if isinstance(node, dict) else range(len(node) if isinstance(node, list) else 0)
    )
    found = [(node, key) for key in keys]
    return found + [place for key in keys for place in _places(node[key])]


@st.composite
def mutated(draw: st.DrawFn, document: Any, *, most: int = 3) -> Any:
    """``document`` with up to ``most`` of its parts replaced, removed, doubled or added."""
    document = copy.deepcopy(document)
    for _ in range(min(most, draw(st.sampled_from((0, 1, 1, 1, 2, 3, 4))))):
        places = _places(document)
        if not places:
            break
        container, key = places[draw(st.integers(0, len(places) - 1))]
        action = draw(st.sampled_from(("replace", "replace", "replace", "remove", "add", "swap")))
        if action == "replace":
            container[key] = draw(values())
        elif action == "remove":
            del container[key]
        elif action == "swap":
            other, other_key = places[draw(st.integers(0, len(places) - 1))]
            container[key] = copy.deepcopy(other[other_key])
        elif isinstance(container, dict):
            container[draw(st.sampled_from(NAMES))] = draw(values())
        else:
            container.append(draw(values()))
    return document


def line(document: Any) -> bytes:
    """JSON text; NaN and halves of characters as Python writes them."""
    return json.dumps(document).encode()


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A request, valid or nearly so."""
    method = draw(st.sampled_from(sorted(REQUESTS)))
    frame = {"id": draw(st.integers(1, 9)), "method": method, "params": REQUESTS[method]}
    return line(draw(mutated(frame)))


def lines() -> st.SearchStrategy[bytes]:
    """A line for either end of the wire, without its end."""
    return st.one_of(
        requests(),
        requests(),
        values().map(line),
        st.binary(max_size=60).map(lambda data: data.replace(b"\n", b"")),
    )


def damaged(data: bytes, seed: int) -> bytes:
    """A file cut off, with bytes flipped, or with a part of it left out or doubled."""
    chance = random.Random(seed)
    found = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(max(1, len(found)))
        action = chance.randrange(5)
        if action == 0:
            del found[at:]
        elif action == 1:
            del found[at : at + chance.randint(1, 40)]
        elif action == 2:
            found[at:at] = found[at : at + chance.randint(1, 40)]
        else:
            found[at : at + 1] = bytes(
                [chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))]
            )
    return bytes(found)
