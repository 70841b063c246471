"""Format and parse sizes, counts and times for people."""

from __future__ import annotations

import re
import time

_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def size(count: int) -> str:
    """A number of bytes in a readable unit."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def count(number: int, thing: str) -> str:
    """`1 layer`, `2 layers`, for a thing whose plural ends in s."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def clock(seconds: float) -> str:
    """A duration as `0.4 s` below ten seconds, else `0:42`, or `1:02:03`."""
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def date(seconds: float) -> str:
    """A time, given in seconds since the epoch, in the host's time zone."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def duration(text: str) -> float:
    """`30m`, `12h`, `7d` or `4w` in seconds. ValueError for anything else."""
    match = _DURATION.fullmatch(text.strip())
    if not match:
        raise ValueError(f"{text!r} is not a duration")
    return float(match[1]) * _SECONDS[match[2]]


def moment(text: str, now: float) -> float:
    """`7d` before `now`, or a date such as 2026-01-31 or 2026-01-31T12:00, in seconds since the epoch.

    A date without a time zone is in the host's. ValueError if it is neither.
    """
    from datetime import datetime

    if _DURATION.fullmatch(text.strip()):
        return now - duration(text)
    try:
        return datetime.fromisoformat(text.strip()).timestamp()
    except (ValueError, OverflowError, OSError) as error:
        raise ValueError(f"{text!r} is neither a duration nor a date") from error
