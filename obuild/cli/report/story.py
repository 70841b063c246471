"""What happened in a build, step by step, from its record alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from obuild import events
from obuild.builder import records
from obuild.events import Event
from obuild.store import parts


@dataclass(slots=True)
class Phase:
    """A phase of a step: when it began, and how long it took, in seconds; None if it has not ended."""

    name: str
    subject: str
    began: float
    seconds: float | None = None


@dataclass(slots=True)
class Step:
    """A step. `state` is `made`, `cached`, `remote`, `failed`, `running`, `interrupted`, or `not reached`.

    Times are in seconds since the epoch, None if it did not begin or end. `origin` is the path of the stage that
    it copies from, or "".
    """

    op: int
    id: str
    text: str
    origin: str
    state: str = "not reached"
    began: float | None = None
    ended: float | None = None
    why: tuple[str, ...] = ()
    nearest: str = ""
    phases: list[Phase] = field(default_factory=list)


@dataclass(slots=True)
class Stage:
    """A stage: its path, "" for the outermost, and its steps by the numbers of their ops."""

    path: str
    steps: dict[int, Step] = field(default_factory=dict)


@dataclass(slots=True)
class Story:
    """A whole build. `failed` is the step in which it failed, if any; `output` is the end of what that printed."""

    stages: dict[str, Stage] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    message: str = ""
    hint: str = ""
    failed: Step | None = None
    output: bytes = b""


def tell(record: Iterable[Event | Mapping[str, object]], *, running: bool) -> Story:
    """Read a record. Of a build that is not `running`, steps that have not ended were interrupted."""
    story = Story()
    for each in record:
        if isinstance(each, Event):
            _add(story, each)
        elif each.get("event") == "failed":
            _fail(story, each)
    for stage in story.stages.values():
        for step in stage.steps.values():
            if step.state == "running" and not running:
                step.state = "interrupted"
    return story


def _add(story: Story, event: Event) -> None:
    place, what = event.place, event.what
    if isinstance(what, events.Planned):
        stage = story.stages.setdefault(place.stage, Stage(place.stage))
        stage.steps = {each.op: Step(*each._replace(id=_id(each.id))) for each in what.steps}
    if isinstance(what, events.Note):
        story.notes.append(what.text)
    step = _step(story, place.stage, place.op)
    if step is None:
        return
    if step.began is None:
        step.began, step.state = event.time, "running"
    step.id = step.id or _id(place.step)
    match what:
        case events.Hit():
            step.state, step.ended = "cached", event.time
        case events.InRemote():
            step.state, step.ended = "remote", event.time
        case events.Missing(why, nearest):
            step.why, step.nearest = why, nearest
        case events.Saved():
            step.state, step.ended = "made", event.time
        case events.PhaseStarted(phase, subject):
            step.phases.append(Phase(phase, subject, event.time))
        case events.PhaseEnded(phase, subject, seconds):
            for begun in reversed(step.phases):
                if (begun.name, begun.subject, begun.seconds) == (phase, subject, None):
                    begun.seconds = seconds
                    break


def _fail(story: Story, record: Mapping[str, object]) -> None:
    try:
        story.message = records.text_of(record, "message")
        story.hint = records.text_of(record, "hint")
        story.output = records.bytes_of(record, "output")
        stage, op = records.text_of(record, "stage"), record.get("op")
    except ValueError:
        return
    step = _step(story, stage, op) if isinstance(op, int) else None
    if step and step.state == "running":
        step.state = "interrupted" if record.get("exit_code") == 130 else "failed"
        time = record.get("time")
        step.ended = float(time) if isinstance(time, int | float) else None
        story.failed = step


def _id(text: str) -> str:
    """An id that can be part of a path; "" if it is none."""
    return text if parts.ID.fullmatch(text) else ""


def _step(story: Story, stage: str, op: int) -> Step | None:
    return story.stages[stage].steps.get(op) if stage in story.stages else None
