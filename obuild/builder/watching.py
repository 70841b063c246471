"""Watch the builds that run on a store: their events, from their records, and output, from the logs of drafts.

Only reads, so whoever watches may come late and leave at any time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from obuild.builder import history, records
from obuild.events import Event, Hit, InRemote, Missing, Note, Output, Place, Planned, Saved, Started
from obuild.host.regular import open_file
from obuild.plan.keys import LayerId
from obuild.store import parts
from obuild.store.layers import Store

#: How much of the output of a step is shown that was at work before somebody came, in bytes.
BEFORE = 20_000

_CHUNK = 1 << 16


class Seen(NamedTuple):
    """An event of the build with this name.

    It is `old` if it happened before anybody looked. `failed` is set for the note that says why the build failed,
    after which nothing more comes from it.
    """

    build: str
    spec: str
    event: Event
    old: bool
    failed: bool = False


class Watcher:
    """Follows all builds of a store that run. A context manager."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._followed: dict[str, _Build] = {}
        self._over: set[str] = set()

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *why: object) -> None:
        for build in self._followed.values():
            build.close()

    @property
    def running(self) -> int:
        """How many builds ran when `look` was called last."""
        return len(self._followed)

    def look(self) -> Iterator[Seen]:
        """Yield what has happened since the last call; call it again and again."""
        for name in self._store.builds.names():
            if name not in self._followed and name not in self._over:
                with suppress(OSError):
                    if self._store.builds.is_running(name):
                        self._followed[name] = _Build(self._store, name)
                    elif (self._store.builds.folder / name).lstat().st_size:  # else it is just being begun
                        self._over.add(name)
        for name, build in list(self._followed.items()):
            running = self._store.builds.is_running(name)  # before reading: what it writes last is then read, too
            yield from build.look(over=not running)
            if not running:
                build.close()
                del self._followed[name]
                self._over.add(name)


class _Build:
    """One build: its record, and the logs of the steps at work, by stage."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._name = name
        self._spec = ""
        self._record = store.builds.open(name)
        self._old = True
        self._ended = False
        self._ops: dict[tuple[str, int], str] = {}
        self._logs: dict[str, tuple[Place, BinaryIO]] = {}
        self._wanted: dict[str, Place] = {}  # the steps at work whose logs are not open yet

    def close(self) -> None:
        self._record.close()
        for _, log in self._logs.values():
            log.close()

    def look(self, *, over: bool) -> Iterator[Seen]:
        for line in history.lines(self._record):
            for event in self._events(line):
                failed = isinstance(event.what, Note) and line.get("event") == "failed"
                yield Seen(self._name, self._spec, event, self._old, failed)
        for event in self._output():
            yield Seen(self._name, self._spec, event, old=False)
        self._old = False
        if over and not self._ended:
            lost = Event(Note("the build was killed"), Place(), os.fstat(self._record.fileno()).st_mtime)
            yield Seen(self._name, self._spec, lost, old=False)

    def _events(self, line: Mapping[str, object]) -> Iterator[Event]:
        event = history.event(line)
        if event is None:
            yield from self._other(line)
            return
        place, what = event.place, event.what
        match what:
            case Planned(steps):
                self._ops |= {(place.stage, step.op): step.text for step in steps}
            case Hit(id):
                yield event._replace(what=Started(self._ops.get((place.stage, place.op), "")))
                log = self._store.log_path(LayerId(id)) if parts.ID.fullmatch(id) else Path()
                event = event._replace(what=what._replace(log=log))
            case Missing() | Started() if parts.ID.fullmatch(place.step):
                self._wanted[place.stage] = place
        if isinstance(what, Hit | Saved | InRemote):
            yield from self._finish(place.stage)
        yield event

    def _other(self, line: Mapping[str, object]) -> Iterator[Event]:
        """What a line says that is no event."""
        with suppress(ValueError):
            if line.get("event") == "build":
                self._spec = records.text_of(line, "spec")
            if line.get("event") == "failed":
                yield from self._failed(line)
            self._ended = self._ended or line.get("event") == "summary"

    def _failed(self, line: Mapping[str, object]) -> Iterator[Event]:
        moment = line.get("time")
        when = float(moment) if isinstance(moment, int | float) else 0.0
        stage = records.text_of(line, "stage")
        place = self._wanted.pop(stage, None)
        if place and not self._old:  # it was so fast that its log was never open, and now it is gone
            yield Event(Output(records.bytes_of(line, "output")), place, when)
        for each in [*self._logs]:
            yield from self._finish(each)
        yield Event(Note(f"the build failed: {records.text_of(line, 'message')}"), Place(stage), when)

    def _output(self) -> Iterator[Event]:
        for stage, place in list(self._wanted.items()):
            with suppress(OSError):
                log = _open_log(self._store, place.step)
                size = os.fstat(log.fileno()).st_size
                log.seek(max(0, size - BEFORE) if self._old else 0)
                self._logs[stage] = place, log
                del self._wanted[stage]
        for place, log in self._logs.values():
            yield from _rest(place, log)

    def _finish(self, stage: str) -> Iterator[Event]:
        """The rest of the output of the step at work in a stage."""
        place = self._wanted.pop(stage, None)
        if place and not self._old:  # it was so fast that its log was never open
            with suppress(OSError), _open_log(self._store, place.step) as log:
                yield from _rest(place, log)
        if stage in self._logs:
            place, log = self._logs.pop(stage)
            with log:
                yield from _rest(place, log)


def _open_log(store: Store, id: str) -> BinaryIO:
    return open_file(store.log_path(LayerId(id)))


def _rest(place: Place, log: BinaryIO) -> Iterator[Event]:
    while data := log.read(_CHUNK):
        yield Event(Output(data), place, os.fstat(log.fileno()).st_mtime)
