"""What a terminal can show, as far as its environment tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

#: Values of TERM for what understands no escape codes.
_DUMB = ("", "dumb", "unknown")


class Look(NamedTuple):
    """What a terminal can show."""

    colour: bool
    unicode: bool


def can_draw(env: Mapping[str, str]) -> bool:
    """Whether rows can be drawn again in place."""
    return env.get("TERM", "") not in _DUMB


def look(env: Mapping[str, str]) -> Look:
    """What the terminal can show, from environment variables."""
    return Look("NO_COLOR" not in env, _speaks_utf8(env))


def _speaks_utf8(env: Mapping[str, str]) -> bool:
    """Whether the user's locale has UTF-8. Python itself sets LC_CTYPE if there is no locale (PEP 538)."""
    own = "" if env.get("LC_CTYPE") == "C.UTF-8" and env.get("LANG", "C") in ("", "C", "POSIX") else "LC_CTYPE"
    name = next((value for name in ("LC_ALL", own, "LANG") if (value := env.get(name))), "C")
    return name.upper().replace("-", "").endswith("UTF8")
