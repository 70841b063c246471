"""What a build can tell. Every user interface reads these records and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Started:
    """An op is looked at: `text` is the op as written, after the workdir it stands in."""

    text: str


@dataclass(frozen=True, slots=True)
class Hit:
    """The step's layer is in the store; `log` is what it printed when it was made."""

    id: str
    log: bytes


@dataclass(frozen=True, slots=True)
class Output:
    """Bytes that a step's command printed, stdout and stderr in order, as they came."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Saved:
    """The step's layer is complete and in the store."""

    id: str


@dataclass(frozen=True, slots=True)
class Note:
    """Something worth a line that is no output of a step."""

    text: str


@dataclass(frozen=True, slots=True)
class Done:
    """The whole build is there; `id` is its last layer."""

    id: str


Event = Started | Hit | Output | Saved | Note | Done
Listener = Callable[[Event], None]
