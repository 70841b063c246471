"""The remotes that a store was used with, in state/remotes.json. Losing that costs a note, and some bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from obuild.host.fs import replace_text
from obuild.host.regular import read_bytes
from obuild.store.layers import Store

Use = Literal["read", "written"]


def names(store: Store) -> tuple[str, ...]:
    """The names of all of them, the latest first."""
    known = _read(store)
    return tuple(dict.fromkeys([*reversed(known["written"]), *reversed(known["read"])]))


def first(store: Store, name: str, use: Use) -> bool:
    """Whether a remote is used in this way for the first time; it is noted."""
    known = _read(store)
    if name in known[use]:
        return False
    known[use].append(name)
    replace_text(_file(store), json.dumps(known))
    return True


def believe(store: Store, name: str, say: Callable[[str], object]) -> None:
    """Say, at the first use for reading, that nobody looks for signatures."""
    if first(store, name, "read"):
        say(f"layers of {name} are believed without a signature; --trust asks for one")


def _file(store: Store) -> Path:
    return store.state / "remotes.json"


def _read(store: Store) -> dict[Use, list[str]]:
    try:
        found = json.loads(read_bytes(_file(store)))
        found = found if isinstance(found, dict) else {"read": found}  # older versions noted only these
        return {"read": list(map(str, found["read"])), "written": list(map(str, found.get("written", ())))}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {"read": [], "written": []}
