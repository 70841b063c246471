"""The state of a build, from its events. Knows nothing of terminals, files or clocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from obuild.cli.live.output import Output
from obuild.events import (
    Done,
    Event,
    Hit,
    InRemote,
    Missing,
    PhaseEnded,
    PhaseStarted,
    Planned,
    Progress,
    Saved,
    StageEnded,
    StageStarted,
    Started,
)
from obuild.events import Output as Printed

#: How much of an op is kept, in characters: an op may have a million, and a line has a hundred.
LONGEST = 400


@dataclass(slots=True)
class Phase:
    """A running phase: `done` of `total` bytes are moved, 0 if unknown. Times are in seconds since the epoch."""

    name: str
    subject: str
    total: int
    began: float
    done: int = 0


@dataclass(slots=True)
class Step:
    """A step at work. `seconds` is how long the layer took that is most like it, and `why` how it differs."""

    op: int
    id: str
    text: str
    began: float
    phases: list[Phase] = field(default_factory=list)
    output: Output = field(default_factory=Output)
    why: tuple[str, ...] = ()
    seconds: float | None = None


@dataclass(slots=True)
class Stage:
    """A stage: how many of its steps are done, of them cached. `step` is the one at work."""

    path: str
    total: int = 0
    done: int = 0
    cached: int = 0
    began: float | None = None
    over: bool = False
    step: Step | None = None


@dataclass(frozen=True, slots=True)
class Made:
    """A step that was made, in `seconds`."""

    stage: str
    text: str
    seconds: float


@dataclass(slots=True)
class State:
    """A build so far. `phases` are those outside of steps, `made` the steps that were made."""

    began: float | None = None
    stages: dict[str, Stage] = field(default_factory=dict)
    phases: list[Phase] = field(default_factory=list)
    made: list[Made] = field(default_factory=list)
    id: str = ""
    seconds: float = 0.0

    @property
    def total(self) -> int:
        """The number of steps in all stages."""
        return sum(stage.total for stage in self.stages.values())

    @property
    def done(self) -> int:
        return sum(stage.done for stage in self.stages.values())

    @property
    def cached(self) -> int:
        return sum(stage.cached for stage in self.stages.values())

    @property
    def network(self) -> bool:
        """Whether a running command has access to the network."""
        return any(
            phase.name == "running" and phase.subject for step in self.working() for phase in step.phases[-1:]
        )

    def active(self) -> list[Stage]:
        """The stages that have begun and not ended, in the order in which they began."""
        found = [stage for stage in self.stages.values() if stage.began is not None and not stage.over]
        return sorted(found, key=lambda stage: stage.began or 0.0)

    def working(self) -> Iterator[Step]:
        """The steps at work."""
        return (stage.step for stage in self.active() if stage.step)

    def stage(self, path: str) -> Stage:
        """The stage at a path; it is added if it is new."""
        return self.stages.setdefault(path, Stage(path))

    def apply(self, event: Event) -> None:
        """Take the next event."""
        if self.began is None:
            self.began = event.time
        path, id, op = event.place
        stage = self.stage(path) if path in self.stages or isinstance(event.what, Planned | StageStarted) else None
        step = stage.step if stage and stage.step and stage.step.id == id else None
        match event.what:
            case Planned(steps) if stage:
                stage.total = len(steps)
            case StageStarted() if stage:
                stage.began, stage.over = event.time, False
            case Started(text) if stage and id:
                stage.step = Step(op, id, text[:LONGEST], event.time)
            case Hit() | InRemote() if stage:
                stage.step = None
                stage.done += 1
                stage.cached += 1
            case Missing(why, _, seconds) if step:
                step.why, step.seconds = why, seconds
            case Printed(data) if step:
                step.output.add(data)
            case PhaseStarted(name, subject, total):
                self._phases(step).append(Phase(name, subject, total, event.time))
            case Progress(name, subject, done, total):
                for phase in self._phases(step):
                    if (phase.name, phase.subject) == (name, subject):
                        phase.done, phase.total = done, total
            case PhaseEnded(name, subject):
                phases = self._phases(step)
                phases[:] = [each for each in phases if (each.name, each.subject) != (name, subject)]
            case Saved(seconds=seconds) if stage and step:
                self.made.append(Made(path, step.text, seconds))
                stage.step = None
                stage.done += 1
            case StageEnded() if stage:
                stage.over = True
            case Done(id, seconds):
                self.id, self.seconds = id, seconds

    def _phases(self, step: Step | None) -> list[Phase]:
        return step.phases if step else self.phases
