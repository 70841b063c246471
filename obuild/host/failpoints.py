"""Named points of the flow at which a process may die: what a crash leaves there is in docs/design.md.

Tests end a process at each of them with `OBUILD_KILL_AT=POINT`, or `POINT:N` for the Nth time it gets there.
"""

from __future__ import annotations

import os
import signal

#: All points, in the order in which a build that has everything to do passes them.
POINTS = (
    "store.making",
    "store.formatting",
    "base.placing",
    "base.placed",
    "draft.made",
    "flat.making",
    "flat.sealed",
    "flat.renamed",
    "draft.ready",
    "cache.copied",
    "machine.started",
    "machine.ready",
    "warm.keeping",
    "warm.kept",
    "machine.resumed",
    "step.done",
    "cache.saving",
    "cache.saved",
    "machine.sealed",
    "machine.off",
    "commit.sealing",
    "commit.sealed",
    "commit.renamed",
    "commit.done",
    "row.added",
    "tag.writing",
    "tag.set",
    "tag.removed",
    "remove.locked",
    "flat.removed",
    "remove.renamed",
    "remove.done",
)

# The process is what is killed, so this belongs to the process. Nothing but tests and OBUILD_KILL_AT sets it.
_fatal: list[tuple[str, int]] = []
_seen: dict[str, int] = {}


def kill_at(point: str) -> None:
    """From now on, end this process with SIGKILL where it says `reach(POINT)`; `point` is POINT or POINT:N."""
    name, _, count = point.partition(":")
    if name not in POINTS or not (count or "1").isdecimal():
        raise ValueError(f"there is no point {point!r}; there are {', '.join(POINTS)}")
    _fatal.append((name, int(count or "1")))


def reach(point: str) -> None:
    """The flow is at `point`."""
    if not _fatal:
        return
    assert point in POINTS, point
    _seen[point] = _seen.get(point, 0) + 1
    if (point, _seen[point]) in _fatal:
        os.kill(os.getpid(), signal.SIGKILL)
