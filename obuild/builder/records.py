"""Events as JSON objects, and back; docs/json.md describes them.

The place and the time of an event come first, then the fields of the record. A field that is not UTF-8 is base64,
under its name with `_base64` appended, so no byte is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import get_args

from obuild import events
from obuild.errors import ObuildError, SpecError
from obuild.events import Event, Place, PlannedStep, What

Record = dict[str, object]


def name_of(kind: type) -> str:
    """The name of a kind of event: `StageStarted` is `stage_started`."""
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in kind.__name__)[1:]


def record(event: Event) -> Record:
    """The record of an event."""
    return _record(name_of(type(event.what)), event.place, event.time, event.what._asdict())


def failure(error: BaseException, time: float) -> Record:
    """The record of the failure of a build, its last one."""
    message, hint = (error.message, error.hint) if isinstance(error, ObuildError) else (str(error), "")
    code = error.exit_code if isinstance(error, ObuildError) else 1
    if isinstance(error, KeyboardInterrupt):
        message, code = "interrupted", 130
    line, column = (error.line, error.column) if isinstance(error, SpecError) else (0, 0)
    values: Record = {"message": message, "hint": hint, "exit_code": code, "line": line, "column": column}
    place = error.place if isinstance(error, ObuildError) else None
    return _record("failed", place or Place(), time, values)


def _record(name: str, place: Place, time: float, values: Mapping[str, object]) -> Record:
    return {"event": name, **encoded(place._asdict()), "time": time, **encoded(values)}


def encoded(values: Mapping[str, object]) -> Record:
    """Fields as JSON can hold them."""
    return dict(_field(*item) for item in values.items())


def _field(name: str, value: object) -> tuple[str, object]:
    if isinstance(value, tuple):
        return name, [encoded(each._asdict()) if isinstance(each, PlannedStep) else each for each in value]
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogateescape")
    if not isinstance(value, bytes):
        return name, value
    try:
        return name, value.decode("utf-8")
    except UnicodeDecodeError:
        import base64

        return f"{name}_base64", base64.b64encode(value).decode("ascii")


# -- and back


def event(record: Mapping[str, object]) -> Event | None:
    """The event of a record; None for records of other kinds. ValueError if a field is missing or wrong."""
    kind = _KINDS.get(str(record.get("event")))
    if kind is None:
        return None
    optional = "seconds" if kind is events.Missing else ""  # the only field that may be null
    values = {name: _value(record, name, optional=name == optional) for name in kind._fields}
    place = Place(*(_value(record, name) for name in Place._fields))  # type: ignore[arg-type]
    return Event(kind(**values), place, float(_number(record.get("time"))))  # type: ignore[arg-type]


def text_of(record: Mapping[str, object], name: str) -> str:
    """A text of a record, perhaps with surrogate escapes. ValueError if it is missing or no text."""
    return bytes_of(record, name).decode("utf-8", "surrogateescape")


def bytes_of(record: Mapping[str, object], name: str) -> bytes:
    """The bytes of a record. ValueError as for `text_of`."""
    value = record.get(name)
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    encoded = record.get(f"{name}_base64")
    if isinstance(encoded, str):
        import base64

        return base64.b64decode(encoded)
    raise ValueError(f"the record has no {name}")


def _value(record: Mapping[str, object], name: str, *, optional: bool = False) -> object:
    if optional and record.get(name) is None:
        return None
    return _READERS.get(name, text_of)(record, name)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is not a number")
    return value


def _list(record: Mapping[str, object], name: str) -> list[object]:
    value = record.get(name)
    if not isinstance(value, list):
        raise ValueError(f"the record has no list {name}")
    return value


def _steps(record: Mapping[str, object], name: str) -> tuple[PlannedStep, ...]:
    texts = ("id", "text", "origin")
    steps = [each for each in _list(record, name) if isinstance(each, dict)]
    return tuple(PlannedStep(_int(each, "op"), *(text_of(each, text) for text in texts)) for each in steps)


def _texts(record: Mapping[str, object], name: str) -> tuple[str, ...]:
    return tuple(str(each) for each in _list(record, name))


def _flag(record: Mapping[str, object], name: str) -> bool:
    return record.get(name) is True


def _int(record: Mapping[str, object], name: str) -> int:
    return int(_number(record.get(name)))


def _float(record: Mapping[str, object], name: str) -> float:
    return float(_number(record.get(name)))


def _path(record: Mapping[str, object], name: str) -> Path:
    return Path(text_of(record, name))


_KINDS: dict[str, type[What]] = {name_of(kind): kind for kind in get_args(events.What)}

#: How fields are read that are not texts.
_READERS: dict[str, Callable[[Mapping[str, object], str], object]] = {
    "op": _int,
    "total": _int,
    "done": _int,
    "seconds": _float,
    "failed": _flag,
    "told": _flag,
    "log": _path,
    "data": bytes_of,
    "steps": _steps,
    "why": _texts,
}
