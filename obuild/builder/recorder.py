"""Records builds in the store, for `history`, `report` and `watch`.

The record of a build (`store/builds.py`) has one JSON object per line: first `build`, which says what is built,
then the events as docs/json.md describes them, and last `summary`. Output and progress are left out: layers and
drafts have logs. Only the end of the output of a failed step is kept, because its draft is removed.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import BinaryIO

from obuild.builder import records
from obuild.errors import Cancelled
from obuild.events import (
    Done,
    Event,
    Hit,
    InRemote,
    Listener,
    Note,
    Output,
    Planned,
    Progress,
    Saved,
    Started,
)
from obuild.host.tail import Tail
from obuild.store.layers import Store
from obuild.version import VERSION

#: How long what is known of a build may wait to be written, in seconds, while nothing but hits comes.
PERIOD = 0.2

#: How many characters of an op are recorded.
LONGEST_OP = 500

#: How many characters of an error message are recorded.
LONGEST_MESSAGE = 10_000

#: How much of the output of a failed step is recorded, in bytes.
LAST_OUTPUT = 1 << 16

#: The events that come a thousand times in a moment when everything is cached.
_CHEAP = (Started, Hit, InRemote)


class Tally:
    """Counts the steps of a build from its events."""

    def __init__(self) -> None:
        self.made = 0
        self.cached = 0
        self.result = ""
        self._planned: dict[str, int] = {}

    def __call__(self, event: Event) -> None:
        match event.what:
            case Planned(steps):
                self._planned[event.place.stage] = len(steps)
            case Hit() | InRemote():
                self.cached += 1
            case Saved():
                self.made += 1
            case Done(id):
                self.result = id

    @property
    def steps(self) -> int:
        return sum(self._planned.values())


class Recorder:
    """A listener that records a build, and passes its events on to another. A context manager around the build.

    A problem with the record never disturbs the build: then there is no record, or the beginning of one.
    """

    def __init__(
        self, store: Store, listener: Listener, *, spec: Path, source: Path, executor: str = "qemu"
    ) -> None:
        self._store = store
        self._listener = listener
        paths = {"spec": spec.absolute(), "source": source.absolute()}
        self._about = {**paths, "executor": executor, "version": VERSION}
        self._open = ExitStack()
        self._file: BinaryIO | None = None
        self._waiting: list[records.Record] = []
        self._written = 0.0
        self._began = 0.0
        self._tally = Tally()
        self._started: dict[str, Event] = {}  # by stage: that a step began, until it is known not to be a hit
        self._tails: dict[str, Tail] = {}  # by stage

    def __enter__(self) -> Recorder:
        self._began = self._written = time.time()
        with suppress(OSError):
            _, self._file = self._open.enter_context(self._store.builds.begin(self._began))
        self._put({"event": "build", "format": 1, "time": self._began, **records.encoded(self._about)})
        self._flush()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        with self._open:
            now = time.time()
            outcome = "done"
            if error is not None:
                outcome = "interrupted" if isinstance(error, Cancelled | KeyboardInterrupt) else "failed"
                self._put(self._failure(error, now))
            tally = self._tally
            self._put(
                {
                    "event": "summary",
                    "time": now,
                    "outcome": outcome,
                    "result": tally.result,
                    "seconds": now - self._began,
                    "steps": tally.steps,
                    "made": tally.made,
                    "cached": tally.cached,
                }
            )
            self._flush()

    def __call__(self, event: Event) -> None:
        self._record(event)
        self._listener(event)

    def _record(self, event: Event) -> None:
        stage = event.place.stage
        match event.what:
            case Output(data):
                if stage not in self._tails:
                    self._tails[stage] = Tail(LAST_OUTPUT)
                self._tails[stage](data)
                return
            case Progress():
                return
            case Started() if event.place.step:
                self._tails.pop(stage, None)
                self._started[stage] = event
                return
        self._tally(event)
        began = self._started.pop(stage, None)
        if began and not isinstance(event.what, Hit):  # the plan has the op of a hit
            self._put(records.record(_short(began)))
        self._put(records.record(_short(event)))
        if not isinstance(event.what, _CHEAP) or event.time - self._written >= PERIOD:
            self._flush()

    def _failure(self, error: BaseException, now: float) -> records.Record:
        failure = records.failure(error, now)
        failure["message"] = str(failure["message"])[:LONGEST_MESSAGE]
        tail = self._tails.get(str(failure["stage"]))
        return {**failure, **records.encoded({"output": tail.data if tail and failure["step"] else b""})}

    def _put(self, record: records.Record) -> None:
        self._waiting.append(record)

    def _flush(self) -> None:
        """Write what is waiting, in one piece."""
        import json

        lines, self._waiting, self._written = self._waiting, [], time.time()
        if self._file:
            data = "".join(f"{json.dumps(line)}\n" for line in lines).encode("ascii")
            try:
                while data:  # a disk that gets full takes a part first
                    data = data[self._file.write(data) :]
            except OSError:
                self._file = None


def _short(event: Event) -> Event:
    """The event with long ops cut, and without the path of a log: the layer has it."""
    match event.what:
        case Planned(steps):
            return event._replace(what=Planned(tuple(each._replace(text=_cut(each.text)) for each in steps)))
        case Started(text):
            return event._replace(what=Started(_cut(text)))
        case Note(text):
            return event._replace(what=Note(_cut(text)))
        case Hit(id, _, told):
            return event._replace(what=Hit(id, Path("log"), told))
    return event


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_OP else text[: LONGEST_OP - 1] + "…"
