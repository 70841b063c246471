"""Shows several builds at once, with what shows one build."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from obuild.builder.watching import Seen
from obuild.cli import text
from obuild.cli.text import Lines
from obuild.events import (
    Done,
    Event,
    Hit,
    InRemote,
    Note,
    Output,
    Place,
    Planned,
    Saved,
    StageEnded,
    Started,
)
from obuild.host.tail import Tail

if TYPE_CHECKING:
    from obuild.cli.live.view import View

#: How many lines of a failed step's output are shown on a terminal.
FAILED = 20


class Watched:
    """Passes the events of all builds to one listener, which shows them on a terminal or as lines.

    The live view gets all of them, and so has the state of each build. Lines get what is new; of what is past they
    say how many steps are done, and which are at work.
    """

    def __init__(self, listener: Lines | View) -> None:
        self._listener = listener
        self._labels: dict[str, str] = {}  # by build; the first one needs none
        self._past: dict[str, _Past] = {}  # for lines: of builds of which nothing was printed yet
        self._last = ""  # the build that the last line was about
        self._tails: dict[str, Tail] = {}  # for the live view: the output of the steps at work, by stage

    def __call__(self, seen: Seen) -> None:
        event = self._labelled(seen)
        if not isinstance(self._listener, Lines):
            self._show(event, self._listener, failed=seen.failed)
        elif seen.old:
            self._past.setdefault(seen.build, _Past(seen.spec)).add(event)
        else:
            self._settle(seen.build, self._listener)
            self._turn_to(seen.build, seen.spec, event.time, self._listener)
            self._listener(_brief(event))

    def settle(self) -> None:
        """Print how far the builds are of which only old events are known."""
        for build in list(self._past):
            if isinstance(self._listener, Lines):
                self._settle(build, self._listener)

    # -- lines

    def _settle(self, build: str, lines: Lines) -> None:
        if past := self._past.pop(build, None):
            now = time.time()
            self._turn_to(build, past.spec, now, lines)
            lines(_note(f"{past.done} of {sum(past.planned.values())} steps are done", now))
            for event in past.at_work.values():
                lines(event)

    def _turn_to(self, build: str, spec: str, moment: float, lines: Lines) -> None:
        if build != self._last:
            self._last = build
            lines.end_line()
            lines(_note(f"== build {build} of {text.word(spec)}", moment))

    # -- the live view

    def _show(self, event: Event, view: View, *, failed: bool) -> None:
        """Show an event, and before the failure of a build the end of its output: the view shows only its own."""
        stage = event.place.stage
        match event.what:
            case Started():
                self._tails.pop(stage, None)
            case Output(data):
                self._tails.setdefault(stage, Tail())(data)
            case Note() if failed and stage in self._tails:
                for line in self._tails.pop(stage).text.splitlines()[-FAILED:]:
                    view(_note(line, event.time))
        view(event)

    # -- both

    def _labelled(self, seen: Seen) -> Event:
        """The event; unless it is of the first build, its stage has the name of the spec in front."""
        event = seen.event
        if seen.build not in self._labels:
            self._labels[seen.build] = self._new_label(seen.spec) if self._labels else ""
        label = self._labels[seen.build]
        if not label:
            return event
        place = event.place._replace(stage=f"{label}/{event.place.stage}".rstrip("/"))
        match event.what:
            case Done(id):
                return Event(Note(f"{label}: done: {id}"), place, event.time)
            case Note(said) if seen.failed:
                return Event(Note(f"{label}: {said}"), place, event.time)
        return event._replace(place=place)

    def _new_label(self, spec: str) -> str:
        path = Path(spec)
        name = (path.parent.name if path.name == "obuild.spec" else path.stem) or "build"
        label, number = name, 1
        while label in self._labels.values():
            number += 1
            label = f"{name}#{number}"
        return label


class _Past:
    """What a build has done before somebody looked, for lines."""

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self.done = 0
        self.planned: dict[str, int] = {}  # by stage: the number of its steps
        self.at_work: dict[str, Event] = {}  # by stage

    def add(self, event: Event) -> None:
        stage = event.place.stage
        match event.what:
            case Planned(steps):
                self.planned[stage] = len(steps)
            case Started():
                self.at_work[stage] = event
            case Hit() | InRemote() | Saved():
                self.done += 1
                self.at_work.pop(stage, None)
            case StageEnded():
                self.at_work.pop(stage, None)


def _brief(event: Event) -> Event:
    """The event; the log of a hit is no news, so it is not shown."""
    return event._replace(what=event.what._replace(told=True)) if isinstance(event.what, Hit) else event


def _note(text: str, moment: float) -> Event:
    return Event(Note(text), Place(), moment)
