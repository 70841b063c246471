"""Events of a worker on their way to the client: a line of JSON each, with the step's id but no other place.

Two builds that wait for the same step may have it in other stages, and may have written it otherwise: each says
where the step is in its own spec.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from obuild.errors import ObuildError
from obuild.events import Event, Hit, Note, Output, PhaseEnded, PhaseStarted, Progress, Saved, What
from obuild.plan.keys import LayerId


class Lost(ObuildError):
    """The scheduler cannot be reached, or is gone."""


class Here(NamedTuple):
    """The step's layer is made: somebody else was faster."""

    id: str


class Wanted(NamedTuple):
    """The worker needs the values of secrets, sealed to this public key, in hex."""

    key: str


class Unfit(NamedTuple):
    """This worker cannot do it, for a reason that others may not have; another one begins again."""

    why: str


#: What a worker may say. A text of `Output` stands for its bytes, as latin-1.
Said = Output | PhaseStarted | PhaseEnded | Progress | Saved | Note | Here | Wanted | Unfit

_RECORDS = {
    record.__name__: record for record in (PhaseStarted, PhaseEnded, Progress, Saved, Note, Here, Wanted, Unfit)
}


def dump(said: Said, step: str = "") -> bytes:
    """A record as a line."""
    fields = [said.data.decode("latin-1")] if isinstance(said, Output) else list(said)
    return json.dumps([type(said).__name__, step, *fields]).encode() + b"\n"


def said(what: What) -> Said | None:
    """What of an event of the worker's own build is said to clients."""
    if isinstance(what, Hit):
        return Here(what.id)
    if isinstance(what, Output | PhaseStarted | PhaseEnded | Progress | Saved | Note):
        return what
    return None


def dump_event(event: Event) -> bytes:
    """An event as a line; b"" if clients do not hear of it."""
    told = said(event.what)
    return dump(told, event.place.step) if told else b""


def load(line: bytes) -> tuple[Said, LayerId]:
    """Read a line: what was said, and the step's id. ValueError if it is none."""
    try:
        name, step, *fields = json.loads(line)
        if name == "Output":
            return Output(str(fields[0]).encode("latin-1")), LayerId(step)
        return _RECORDS[name](*fields), LayerId(step)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ValueError(f"a worker said something else than an event: {line[:100]!r}") from error
