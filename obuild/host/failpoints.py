"""Named points in the code at which a process may die. docs/design.md says what a crash leaves at each.

Tests kill a process at a point with `OBUILD_KILL_AT=POINT`, or `POINT:N` for the Nth time it gets there.
"""

from __future__ import annotations

import os
import signal

#: All points, in the order in which an uncached build that makes its base passes them.
POINTS = (
    "store.making",
    "store.formatting",
    "make.filled",
    "download.keeping",
    "download.kept",
    "make.packed",
    "make.locking",
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
    "native.mounted",
    "native.running",
    "step.done",
    "cache.saving",
    "cache.saved",
    "machine.sealed",
    "machine.off",
    "native.unmounted",
    "native.sealed",
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
    "export.unpacked",
    "export.made",
    "export.placed",
    "export.documented",
    "publish.exported",
    "publish.piece",
    "publish.sent",
    "push.blob",
    "push.tagging",
    "push.tagged",
    "pull.blob",
    "pull.filled",
)

# What is killed is the process, so this state is the process's. Only tests and OBUILD_KILL_AT set it.
_fatal: list[tuple[str, int]] = []
_seen: dict[str, int] = {}


def kill_at(point: str) -> None:
    """Have `reach` kill this process with SIGKILL at `point`, which is POINT or POINT:N."""
    name, _, count = point.partition(":")
    if name not in POINTS or not (count or "1").isdecimal():
        raise ValueError(f"no point {point!r}; the points are {', '.join(POINTS)}")
    _fatal.append((name, int(count or "1")))


def reach(point: str) -> None:
    """Say that this process is at `point`; it dies here if a test wants it to."""
    if not _fatal:
        return
    assert point in POINTS, point
    _seen[point] = _seen.get(point, 0) + 1
    if (point, _seen[point]) in _fatal:
        os.kill(os.getpid(), signal.SIGKILL)
