"""What a build tells, and where in the build it happened. Every user interface reads this and nothing else.

Whoever works somewhere in a build is handed a `Teller`, which knows the place; it makes the events and passes them
to the listener. No record holds the value of a secret, and none holds more output than came in one piece.

The records are named tuples: Python makes such classes several times as fast as frozen dataclasses, and a build
that finds everything in the store has to make them, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

#: How often the progress of a phase is told, in seconds.
PROGRESS_PERIOD = 0.25

#: What can take long inside a step, or before one.
PhaseName = Literal[
    "making base",  # the subject is its name
    "waiting",  # for another build that makes the same step, or boots the same layer
    "preparing",  # the draft
    "importing",  # the subject is the file of the base image
    "booting",
    "resuming",
    "sending",  # the subject is a cache's name, the folder that a copy goes to, or "secrets"
    "running",
    "fetching",  # the subject is a cache's name or the build that files are taken from
    "sealing",
    "saving",  # a machine, for later steps
    "committing",
]


class Place(NamedTuple):
    """Where in a build something happens.

    `stage` is the path of a stage: the names of the builds that it lies in, with slashes between; "" is the
    outermost one. `step` is a step's id, "" outside of steps. `op` is the number of an op in its stage, with
    `from` as 1; 0 outside of ops.
    """

    stage: str = ""
    step: str = ""
    op: int = 0


class StageStarted(NamedTuple):
    """A stage begins. `name` is the last part of its path."""

    name: str


class PlannedStep(NamedTuple):
    """One step of a plan: the number of its op, its id ("" if not known yet), and the op as in `Started`."""

    op: int
    id: str
    text: str


class Planned(NamedTuple):
    """All steps of the stage, in order."""

    steps: tuple[PlannedStep, ...]


class Started(NamedTuple):
    """An op is looked at: `text` is the op as written, after the workdir it stands in."""

    text: str


class Hit(NamedTuple):
    """The step's layer is in the store. The file `log` has what the step printed when it was made.

    The file can be read until the listener returns. `told` is true if all of it has just come as `Output`, because
    another build was making the step.
    """

    id: str
    log: Path
    told: bool = False


class Output(NamedTuple):
    """Bytes that a step's command printed, stdout and stderr in order, as they came."""

    data: bytes


class PhaseStarted(NamedTuple):
    """Something begins that can take long. `total` is how many bytes it will move, 0 if it is not known."""

    phase: PhaseName
    subject: str = ""
    total: int = 0


class Progress(NamedTuple):
    """So many bytes of `total` have been moved; told a few times a second, and once at the end."""

    phase: PhaseName
    subject: str
    done: int
    total: int


class PhaseEnded(NamedTuple):
    """A phase is over, whether it succeeded or not; it took so many `seconds`."""

    phase: PhaseName
    subject: str
    seconds: float


class Saved(NamedTuple):
    """The step's layer is complete and in the store; making it took so many `seconds`."""

    id: str
    seconds: float


class Note(NamedTuple):
    """Something worth a line that is no output of a step."""

    text: str


class StageEnded(NamedTuple):
    """A stage is over after so many `seconds`."""

    name: str
    seconds: float
    failed: bool = False


class Done(NamedTuple):
    """The whole build is there after so many `seconds`; `id` is its last layer."""

    id: str
    seconds: float


What = (
    StageStarted
    | Planned
    | Started
    | Hit
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


#: Hears the events of a build, in order and one at a time. With several jobs the calls come from several threads,
#: but never two at once, so a listener needs no lock. The build waits while it runs. It must not call the engine.
#: If it raises, it is not called again, the build ends, and `Engine.build` raises the same exception.
Listener = Callable[[Event], None]


class Phase:
    """A phase that goes on; `advance` counts the bytes that it has moved."""

    def __init__(self, tell: Teller, started: PhaseStarted) -> None:
        self._tell = tell
        self._started = started
        self._done = self._told = 0
        self._last = time.monotonic()

    def advance(self, count: int) -> None:
        """So many more bytes have been moved."""
        self._done += count
        if time.monotonic() - self._last >= PROGRESS_PERIOD:
            self.report()

    def report(self) -> None:
        """Tell how far it is, if that was not told yet."""
        if self._done > self._told:
            self._told, self._last = self._done, time.monotonic()
            self._tell(Progress(self._started.phase, self._started.subject, self._done, self._started.total))


class Teller:
    """Tells a listener what happens at one place of a build."""

    def __init__(self, listener: Listener, place: Place = Place()) -> None:  # noqa: B008  # it never changes
        self.listener = listener
        self.place = place

    def __call__(self, what: What) -> None:
        self.listener(Event(what, self.place, time.time()))

    def note(self, text: str) -> None:
        """Tell a Note."""
        self(Note(text))

    def of_stage(self, path: str) -> Teller:
        """The same listener, told of a stage."""
        return Teller(self.listener, Place(path))

    def of_op(self, op: int, step: str = "") -> Teller:
        """The same listener, told of an op of this stage, and of the step that the op is."""
        return Teller(self.listener, Place(self.place.stage, step, op))

    @contextmanager
    def phase(self, name: PhaseName, subject: str = "", total: int = 0) -> Iterator[Phase]:
        """Tell that a phase begins, and when the block ends, that it is over."""
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
        """Tell that this stage begins, and when the block ends, that it is over."""
        self(StageStarted(name))
        began = time.monotonic()
        failed = True
        try:
            yield
            failed = False
        finally:
            self(StageEnded(name, time.monotonic() - began, failed))


#: Tells nobody.
SILENT = Teller(lambda event: None)
