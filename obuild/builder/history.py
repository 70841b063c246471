"""The builds of a store, from their records (see `recorder`)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO

from obuild.builder import records
from obuild.builder.recorder import Tally
from obuild.errors import UsageError
from obuild.events import Event
from obuild.store.layers import Store

#: The longest line that is read, in bytes: the plan of a stage with 10,000 steps has 6 MB.
LONGEST = 1 << 24

_ID_START = re.compile("[0-9a-f]{4,64}")

#: Where the last line is looked for, in bytes from the end.
_END = 4096


@dataclass(frozen=True, slots=True)
class Build:
    """One build. `outcome` is `done`, `failed`, `interrupted` or `running`; `seconds` is None unless it has ended.

    `result` is the id of its last layer, "" unless it is done. `steps` counts the steps of its plan, `made` those
    that it made, and `cached` those that were in the store or in a remote.
    """

    id: str
    began: float
    seconds: float | None
    outcome: str
    result: str
    steps: int
    made: int
    cached: int
    spec: str
    source: str
    executor: str
    version: str


def builds(store: Store) -> list[Build]:
    """All recorded builds, the newest last."""
    found = (look(store, name) for name in store.builds.names())
    return [build for build in found if build]


def look(store: Store, name: str) -> Build | None:
    """One build; None if there is no such record, or it cannot be read."""
    running = store.builds.is_running(name)  # before reading: its build may end meanwhile
    with suppress(OSError, ValueError), store.builds.open(name) as file:
        about = _line(file.readline(LONGEST))
        end = _last(file)
        if end is None:
            return _unfinished(name, about, file, running=running)
        return _build(name, about, end, str(end.get("outcome")), float(str(end["seconds"])))
    return None


def _unfinished(name: str, about: Mapping[str, object], file: BinaryIO, *, running: bool) -> Build:
    tally = Tally()
    file.seek(0)
    for record in lines(file):
        if said := event(record):
            tally(said)
    counts: dict[str, object] = {"steps": tally.steps, "made": tally.made, "cached": tally.cached}
    return _build(name, about, counts, "running" if running else "interrupted", None)


def _build(
    name: str, about: Mapping[str, object], end: Mapping[str, object], outcome: str, seconds: float | None
) -> Build:
    if about.get("event") != "build":
        raise ValueError("it does not begin as a record")
    steps, made, cached = (int(str(end.get(field, 0))) for field in ("steps", "made", "cached"))
    spec, source, executor, version = (
        records.text_of(about, field) for field in ("spec", "source", "executor", "version")
    )
    result = str(end.get("result", ""))
    began = float(str(about["time"]))
    return Build(name, began, seconds, outcome, result, steps, made, cached, spec, source, executor, version)


def lines(file: BinaryIO) -> Iterator[Mapping[str, object]]:
    """The complete lines of a record from the current position. Lines that make no sense are left out."""
    while line := file.readline(LONGEST):
        if not line.endswith(b"\n"):  # it is just being written; longer ones are not ours
            file.seek(-len(line), 1)
            return
        with suppress(ValueError, RecursionError):
            yield _line(line)


def events(store: Store, name: str) -> Iterator[Event | Mapping[str, object]]:
    """The events of a build, and those lines of its record that are no events: `build`, `failed`, `summary`.

    UsageError if there is no such record.
    """
    try:
        with store.builds.open(name) as file:
            for record in lines(file):
                yield event(record) or record
    except FileNotFoundError as error:
        raise UsageError(f"there is no build {name}", hint="`obuild history` lists the builds") from error


def find(store: Store, wanted: str) -> str:
    """The name of a build: `last`, a name, or the last build that gave the layer with this id or tag.

    If none gave it, the last that passed through it. UsageError if there is none.
    """
    names = store.builds.names()
    if wanted == "last" and names:
        return names[-1]
    if wanted in names:
        return wanted
    if not names:
        raise UsageError("the store has no record of a build", hint="every `obuild build` leaves one")
    known = builds(store)
    if _ID_START.fullmatch(wanted):  # the layer may be gone
        of_id = [build for build in known if build.result.startswith(wanted)]
        if len({build.result for build in of_id}) == 1:
            return of_id[-1].id
    from obuild.store.index import resolve

    id = resolve(store, wanted)
    results = [build.id for build in known if build.result == id]
    if results:
        return results[-1]
    for name in reversed(names):
        with suppress(OSError), store.builds.open(name) as file:
            if any(id.encode() in line for line in file):
                return name
    hint = "`obuild history` lists the builds; the last 100 are remembered"
    raise UsageError(f"no recorded build has the layer {id[:12]}", hint=hint)


def event(record: Mapping[str, object]) -> Event | None:
    """The event of a line; None if it is none."""
    with suppress(ValueError, OverflowError):
        return records.event(record)
    return None


def _line(line: bytes) -> Mapping[str, object]:
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError("a line without a record")
    return record


def _last(file: BinaryIO) -> Mapping[str, object] | None:
    """The last line, if it is a summary."""
    size = file.seek(0, 2)
    file.seek(max(0, size - _END))
    *_, last = file.read(_END).rstrip(b"\n").split(b"\n")
    with suppress(ValueError, RecursionError):
        record = _line(last)
        if record.get("event") == "summary":
            return record
    return None
