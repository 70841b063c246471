"""A TOML table that knows where each key was written, so that every error names file, line and column."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from obuild.errors import UsageError
from obuild.guests import profile
from obuild.host import toml, units


@dataclass(frozen=True, slots=True)
class Source:
    """A file that was read. Messages call it `shown`."""

    shown: str
    text: str
    folder: Path

    def place(self, path: toml.KeyPath) -> str:
        """Return FILE:LINE:COLUMN of a key."""
        found = toml.position(self.text, path)
        return f"{self.shown}:{found[0]}:{found[1]}" if found else self.shown


class Table(dict[str, Any]):
    """A table, or several merged ones. Messages about a missing key begin with `where`.

    The readers below take a key, and raise UsageError, with its place, if the value has the wrong type or form.
    """

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        self.origin: dict[str, tuple[Source, toml.KeyPath]] = {}
        #: Where each item of a list was written, for lists merged from several files.
        self.sources: dict[str, list[Source]] = {}

    def error(self, key: str, message: str, *, hint: str = "") -> UsageError:
        """Return a UsageError about a key, or about its absence."""
        if key not in self.origin:
            return UsageError(f"{self.where}: {message}", hint=hint)
        source, path = self.origin[key]
        return UsageError(f"{source.place(path)}: {message}", hint=hint)

    def written_in(self, key: str) -> list[Source]:
        """Return where a key's value was written; for a list, where each item was."""
        value = self.get(key, [])
        return self.sources.get(key) or [self.origin[key][0] for _ in (value if isinstance(value, list) else [1])]

    def only(self, *known: str, what: str = "key") -> None:
        """UsageError, with the nearest known key, for any other key."""
        for key in self:
            if key not in known:
                raise self.error(key, f"unknown {what} {key!r}", hint=nearest(key, known))

    def text(self, key: str, *, default: str | None = None) -> str:
        value = self.get(key, default)
        if value is None:
            raise self.error(key, f"{key} is missing", hint=f'add a line: {key} = "..."')
        if not isinstance(value, str):
            raise self.error(key, f"{key} must be a string in quotes")
        return value

    def line(self, key: str) -> str:
        """Read one line of text, "" if the key is missing."""
        text = self.text(key, default="").strip()
        if not text.isprintable():
            raise self.error(key, f"{key} must be one line of printable text")
        return text

    def choice(self, key: str, allowed: Iterable[str], *, default: str | None = None) -> str:
        value = self.text(key, default=default)
        if value not in (names := tuple(allowed)):
            raise self.error(key, f"{key} is {value!r}", hint=nearest(value, names))
        return value

    def match(self, key: str, pattern: re.Pattern[str], *, hint: str, default: str | None = None) -> str:
        value = self.text(key, default=default)
        if not pattern.fullmatch(value):
            raise self.error(key, f"{key} is {value!r}", hint=hint)
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, f"{key} must be true or false, without quotes")
        return value

    def size(self, key: str, *, smallest: int, default: str | None = None) -> int:
        """Read a size in whole MiB, as a number of bytes."""
        hint = "write it like 4G or 512M"
        try:
            size = profile.parse_size(self.text(key, default=default))
        except ValueError as error:
            raise self.error(key, f"{key}: {error}", hint=hint) from error
        if size < smallest or size % (1 << 20) or size > 1 << 50:
            raise self.error(key, f"{key} must be whole MiB, and at least {smallest >> 20}M", hint=hint)
        return size

    def duration(self, key: str, *, default: str) -> float:
        """Read a duration, as a number of seconds."""
        try:
            return units.duration(self.text(key, default=default))
        except ValueError as error:
            raise self.error(key, f"{key}: {error}", hint="write it like 90m or 4h") from error

    def strings(self, key: str) -> tuple[str, ...]:
        values = self.get(key, [])
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise self.error(key, f"{key} must be a list of strings", hint='write it like ["sudo", "tar"]')
        return tuple(values)

    def table(self, key: str) -> Table:
        value = self.get(key, Table(f"{self.where}: [{key}]"))
        if not isinstance(value, Table):
            raise self.error(key, f"{key} must be a table", hint=f"write it under a line [{key}]")
        return value

    def tables(self, key: str) -> list[Table]:
        value = self.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, Table) for item in value):
            raise self.error(key, f"{key} must be tables", hint=f"write each under a line [[{key}]]")
        return value


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint: the known word that was probably meant, or all of them."""
    names = tuple(known)
    close = difflib.get_close_matches(word, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"


def placed(source: Source, values: Mapping[str, Any], path: toml.KeyPath = ()) -> Table:
    """Return values read from `source` as a table with the origin of each key."""
    keys = [str(key) for key in path if isinstance(key, str)]
    table = Table(f"{source.place(path)}: [{'.'.join(keys)}]" if keys else source.shown)
    for key, value in values.items():
        table.origin[key] = (source, (*path, key))
        table[key] = _placed_value(source, value, (*path, key))
    return table


def _placed_value(source: Source, value: Any, path: toml.KeyPath) -> Any:
    if isinstance(value, dict):
        return placed(source, value, path)
    if isinstance(value, list):
        return [_placed_value(source, item, (*path, index)) for index, item in enumerate(value)]
    return value


def merged(below: Table, above: Table, *, add: bool) -> Table:
    """Merge a table onto another: keys are replaced, tables merged, lists of tables joined.

    With `add`, all lists are joined, and so is a kernel's `cmdline`.
    """
    table = Table(above.where)
    table.update(below)
    table.origin = {**below.origin, **above.origin}
    table.sources = {key: sources for key, sources in below.sources.items() if key not in above} | above.sources
    for key, value in above.items():
        old = below.get(key)
        if isinstance(old, Table) and isinstance(value, Table):
            table[key] = merged(old, value, add=add)
        elif isinstance(old, list) and isinstance(value, list) and (add or _are_tables(old + value)):
            table[key] = old + value
            table.sources[key] = below.written_in(key) + above.written_in(key)
        elif add and key == "cmdline" and isinstance(old, str) and isinstance(value, str):
            table[key] = f"{old} {value}".strip()
        else:
            table[key] = value
    return table


def _are_tables(values: list[Any]) -> bool:
    return all(isinstance(value, Table) for value in values)
