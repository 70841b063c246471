"""The events of a build: what happened, and where. Every user interface reads these and nothing else.

Code that works somewhere in a build gets a `Teller`, which knows the place, makes the events, and passes them to
the listener. No record holds the value of a secret, and none holds more output than came in one piece.

The records are named tuples: Python defines such classes several times as fast as frozen dataclasses, and even a
fully cached build has to define them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

#: The shortest time between two reports of a phase's progress, in seconds.
PROGRESS_PERIOD = 0.25

#: What can take a while in a step, or before one.
PhaseName = Literal[
    "making base",  # the subject is its name
    "waiting",  # for another build that is making the same step, or booting the same layer
    "preparing",  # the draft
    "importing",  # the subject is the file of the base image
    "booting",
    "mounting",
    "resuming",
    "sending",  # the subject is a cache's name, the folder that a copy goes to, "secrets", or remotes
    "running",  # the subject is "host" if the command has access to the network
    "fetching",  # the subject is a cache's name, the build that files are taken from, or a remote
    "sealing",
    "saving",  # a machine, for later steps
    "committing",
]


class Place(NamedTuple):
    """A place in a build.

    `stage` is the path of a stage: the names of the builds that contain it, separated by slashes; "" is the
    outermost one. `step` is a step's id, "" outside of steps. `op` is the number of an op in its stage, counted
    from `from`, which is 1; 0 outside of ops.
    """

    stage: str = ""
    step: str = ""
    op: int = 0


class StageStarted(NamedTuple):
    """A stage begins. `name` is the last part of its path."""

    name: str


class PlannedStep(NamedTuple):
    """One step of a plan: the number of its op, its id ("" if not known yet), and the op as in `Started`.

    `origin` is the path of the stage that it copies files from, "" if it copies from none.
    """

    op: int
    id: str
    text: str
    origin: str = ""


class Planned(NamedTuple):
    """All steps of the stage, in order."""

    steps: tuple[PlannedStep, ...]


class Started(NamedTuple):
    """Work on an op begins: `text` is its workdir and the op as written."""

    text: str


class Hit(NamedTuple):
    """The step's layer is in the store. The file `log` holds what the step printed when it was made.

    The file can be read until the listener returns. `told` is true if all of it has just been sent as `Output`,
    because another build was making the step.
    """

    id: str
    log: Path
    told: bool = False


class InRemote(NamedTuple):
    """The step's layer is in the remote with this name, and stays there: nothing here needs it."""

    id: str
    remote: str


class Missing(NamedTuple):
    """The step's layer is not in the store, and is made now.

    `why` says in words how the step differs from the layer `nearest`, the most similar one in the store ("" if
    there is none), and `seconds` is how long that one took. None or empty if unknown.
    """

    why: tuple[str, ...] = ()
    nearest: str = ""
    seconds: float | None = None


class Output(NamedTuple):
    """Bytes that a step's command printed: stdout and stderr in the order in which they came."""

    data: bytes


class PhaseStarted(NamedTuple):
    """A phase begins. `total` is the number of bytes it will move, 0 if unknown."""

    phase: PhaseName
    subject: str = ""
    total: int = 0


class Progress(NamedTuple):
    """`done` of `total` bytes have been moved; sent a few times a second, and once at the end."""

    phase: PhaseName
    subject: str
    done: int
    total: int


class PhaseEnded(NamedTuple):
    """A phase ended after `seconds`, whether it succeeded or not."""

    phase: PhaseName
    subject: str
    seconds: float


class Saved(NamedTuple):
    """The step's layer is complete and in the store; it took `seconds` to make."""

    id: str
    seconds: float


class Note(NamedTuple):
    """A remark for the user that is not a step's output."""

    text: str


class StageEnded(NamedTuple):
    """A stage ended after `seconds`."""

    name: str
    seconds: float
    failed: bool = False


class Done(NamedTuple):
    """The whole build is complete after `seconds`; `id` is its last layer."""

    id: str
    seconds: float


What = (
    StageStarted
    | Planned
    | Started
    | Hit
    | InRemote
    | Missing
    | Output
    | PhaseStarted
    | Progress
    | PhaseEnded
    | Saved
    | Note
    | StageEnded
    | Done
)


class Event(NamedTuple):
    """What happened, where, and when, in seconds since the epoch."""

    what: What
    place: Place
    time: float


#: Gets the events of a build, in order and one at a time. With several jobs the calls come from several threads,
#: but never two at once, so a listener needs no lock. The build waits while it runs. It must not call the engine.
#: If it raises, it is not called again, the build ends, and `Engine.build` raises the same exception.
Listener = Callable[[Event], None]


class Phase:
    """A running phase; `advance` counts the bytes that it has moved."""

    def __init__(self, tell: Teller, started: PhaseStarted) -> None:
        self._tell = tell
        self._started = started
        self._done = self._told = 0
        self._last = time.monotonic()

    def advance(self, count: int) -> None:
        """Add `count` to the bytes moved, and report them if the last report is old enough."""
        self._done += count
        if time.monotonic() - self._last >= PROGRESS_PERIOD:
            self.report()

    def reach(self, done: int, total: int = 0) -> None:
        """`done` bytes in all have been moved; of `total`, if that was not known when the phase began."""
        if total:
            self._started = self._started._replace(total=total)
        self.advance(done - self._done)

    def report(self) -> None:
        """Send the progress, unless it was sent already."""
        if self._done > self._told:
            self._told, self._last = self._done, time.monotonic()
            self._tell(Progress(self._started.phase, self._started.subject, self._done, self._started.total))


class Teller:
    """Sends a listener the events of one place in a build."""

    def __init__(self, listener: Listener, place: Place = Place()) -> None:  # noqa: B008  # it never changes
        self.listener = listener
        self.place = place

    def __call__(self, what: What) -> None:
        self.listener(Event(what, self.place, time.time()))

    def note(self, text: str) -> None:
        """Send a Note."""
        self(Note(text))

    def of_stage(self, path: str) -> Teller:
        """A teller to the same listener, for a stage."""
        return Teller(self.listener, Place(path))

    def of_op(self, op: int, step: str = "") -> Teller:
        """A teller to the same listener, for an op of this stage and, if it is one, for its step."""
        return Teller(self.listener, Place(self.place.stage, step, op))

    @contextmanager
    def phase(self, name: PhaseName, subject: str = "", total: int = 0) -> Iterator[Phase]:
        """Send that a phase begins and, when the block ends, that it has ended."""
        started = PhaseStarted(name, subject, total)
        self(started)
        phase = Phase(self, started)
        began = time.monotonic()
        try:
            yield phase
            phase.report()
        finally:
            self(PhaseEnded(name, subject, time.monotonic() - began))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Send that this stage begins and, when the block ends, that it has ended."""
        self(StageStarted(name))
        began = time.monotonic()
        failed = True
        try:
            yield
            failed = False
        finally:
            self(StageEnded(name, time.monotonic() - began, failed))


#: Drops every event.
SILENT = Teller(lambda event: None)
