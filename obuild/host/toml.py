"""TOML: read it, write it, and find the line and column of a key, which tomllib does not give."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from obuild.errors import UsageError

#: The path to a key from the top of a file: names of tables and keys, and an index for each array of tables.
KeyPath = tuple[str | int, ...]

_NAME = r"""(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')"""
_NAMES = rf"{_NAME}(?:\s*\.\s*{_NAME})*"
_HEADER = re.compile(rf"\s*(\[\[?)\s*({_NAMES})\s*\]")
_KEY = re.compile(rf"\s*({_NAMES})\s*=")
_BARE = re.compile(r"[A-Za-z0-9_-]+")


def loads(text: str, *, where: str) -> dict[str, Any]:
    """Parse a TOML file. UsageError, beginning with `where`, if it is not TOML."""
    import tomllib

    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of 5,000 digits
        raise UsageError(f"{where}: not a TOML file: {error}") from error


def position(text: str, path: KeyPath) -> tuple[int, int] | None:
    """The line and column, from 1, of a key or a table's header; if not found, of the nearest table around it."""
    places: dict[KeyPath, tuple[int, int]] = {}
    for found, line, column in _keys(text):
        places.setdefault(found, (line, column))
    return next((places[path[:length]] for length in range(len(path), 0, -1) if path[:length] in places), None)


def _keys(text: str) -> Iterator[tuple[KeyPath, int, int]]:
    """Every table and key that begins a line, with its line and column. Good enough for messages, not a parser."""
    table: KeyPath = ()
    seen: Counter[KeyPath] = Counter()
    inside = ""
    for number, line in enumerate(text.split("\n"), 1):
        if inside:
            inside = "" if inside in line else inside
            continue
        if header := _HEADER.match(line):
            table = tuple(_plain(name) for name in re.findall(_NAME, header[2]))
            if header[1] == "[[":
                seen[table] += 1
                table = (*table, seen[table] - 1)
            yield table, number, header.start(2) + 1
        elif key := _KEY.match(line):
            yield (*table, *(_plain(name) for name in re.findall(_NAME, key[1]))), number, key.start(1) + 1
        for quotes in ("'''", '"""'):
            if line.count(quotes) % 2:
                inside = quotes


def _plain(name: str) -> str:
    return name[1:-1] if name[0] in "'\"" else name


def dumps(table: Mapping[str, Any]) -> str:
    """The text of a table of strings, numbers, booleans, lists and tables, which `loads` reads back."""
    return "\n".join(_lines(table, ())).strip("\n") + "\n"


def _lines(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    later = {key: value for key, value in table.items() if _is_table(value) or _is_tables(value)}
    yield from (f"{_name(key)} = {_value(value)}" for key, value in table.items() if key not in later)
    for key, value in later.items():
        name = ".".join(map(_name, (*path, key)))
        for item in [value] if _is_table(value) else value:
            yield from ("", f"[{name}]" if _is_table(value) else f"[[{name}]]")
            yield from _lines(item, (*path, key))


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping)


def _is_tables(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(map(_is_table, value))


def _name(key: str) -> str:
    return key if _BARE.fullmatch(key) else quoted(key)


def _value(value: Any) -> str:
    if isinstance(value, str):
        return _block(value) if "\n" in value else quoted(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    return str(value)


def _block(text: str) -> str:
    """Text of several lines as a multi-line literal, if possible."""
    literal = "'''" not in text and not text.endswith("'")
    plain = all(character in "\n\t" or character.isprintable() for character in text)
    return f"'''\n{text}'''" if literal and plain else quoted(text)


def quoted(text: str) -> str:
    """A TOML string. It is a JSON string but for JSON's surrogate pairs and DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
