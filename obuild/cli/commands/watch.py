"""Watch the builds that run on a store."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from obuild.cli import text
from obuild.cli.console import guarded, lines, look_at, put, say
from obuild.cli.options import StoreOption
from obuild.events import Event, Hit, InRemote, Planned, Saved, StageEnded, Started

if TYPE_CHECKING:
    from obuild.builder.watching import Seen

app = typer.Typer()

#: How often to look for news, in seconds.
PERIOD = 0.1


@app.command()
@guarded
def watch(
    store: StoreOption = "",
    wait: Annotated[
        bool, typer.Option("--wait", "-w", help="Wait for builds, also after the last one has ended.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the records of docs/json.md, each with its `build`.")
    ] = False,
) -> None:
    """Watch the builds that run on a store now: their steps and output, until they end.

    It begins with what is at work. Ctrl-C leaves, and the builds go on. Nothing in the store is changed.

    Example: obuild watch
    """
    from obuild.builder.watching import Watcher

    shown = _Shown()
    show = _json if as_json else shown
    try:
        with Watcher(look_at(store)) as watcher:
            _follow(watcher.look, show)
            shown.settle()
            if not watcher.running and not wait and not as_json:
                say("no build is running")
            while watcher.running or wait:
                time.sleep(PERIOD)
                _follow(watcher.look, show)
    except KeyboardInterrupt:  # the way to leave
        return


def _follow(look: Callable[[], Iterator[Seen]], show: Callable[[Seen], None]) -> None:
    for seen in look():
        show(seen)
    sys.stdout.flush()


def _json(seen: Seen) -> None:
    from obuild.builder import records

    put(json.dumps({"build": seen.build, **records.record(seen.event)}))


class _Shown:
    """Prints events as a build does, and whose they are when several builds run.

    Of what is old, it prints how many steps are done, and which are at work.
    """

    def __init__(self) -> None:
        self._lines = lines()
        self._builds: dict[str, _Past] = {}  # those of which nothing was printed yet
        self._last = ""

    def __call__(self, seen: Seen) -> None:
        if seen.old:
            self._builds.setdefault(seen.build, _Past(seen.spec)).add(seen.event)
            return
        self._settle(seen.build)
        self._turn_to(seen.build, seen.spec)
        self._lines(seen.event)

    def settle(self) -> None:
        """Print how far the builds are of which only old events are known."""
        for build in list(self._builds):
            self._settle(build)

    def _settle(self, build: str) -> None:
        if past := self._builds.pop(build, None):
            self._turn_to(build, past.spec)
            say(f"{past.done} of {past.steps} steps are done")
            for event in past.at_work.values():
                self._lines(event)

    def _turn_to(self, build: str, spec: str) -> None:
        if build != self._last:
            self._last = build
            self._lines.end_line()
            say(f"== build {build} of {text.word(spec)}")


class _Past:
    """What a build has done before somebody looked."""

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self.done = 0
        self.at_work: dict[str, Event] = {}  # by stage
        self._planned: dict[str, int] = {}

    @property
    def steps(self) -> int:
        return sum(self._planned.values())

    def add(self, event: Event) -> None:
        stage = event.place.stage
        match event.what:
            case Planned(steps):
                self._planned[stage] = len(steps)
            case Started():
                self.at_work[stage] = event
            case Hit() | InRemote() | Saved():
                self.done += 1
                self.at_work.pop(stage, None)
            case StageEnded():
                self.at_work.pop(stage, None)
