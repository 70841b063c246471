"""Make what a program has printed safe to show in a line of a terminal: no escape codes, no control characters."""

from __future__ import annotations

import re

#: ECMA-48: control sequences, control strings with their text, other escapes; some also begin with a C1 control.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)

_TAB = 8


def line(text: str) -> str:
    """One line as a terminal would show it in the end.

    A carriage return starts the line again, a backspace removes a character; escape codes are left out, and other
    characters that are not printable are shown as `\ufffd`.
    """
    if text.isascii() and text.isprintable():
        return text
    text = _ESCAPES.sub("", text).rstrip("\r")
    text = text.rpartition("\r")[2].expandtabs(_TAB)
    if "\b" in text:
        text = _without_erased(text)
    text = text.replace("\xa0", " ")
    return text if text.isprintable() else "".join(each if each.isprintable() else "\ufffd" for each in text)


def _without_erased(text: str) -> str:
    kept: list[str] = []
    for each in text:
        if each != "\b":
            kept.append(each)
        elif kept:
            kept.pop()
    return "".join(kept)


def lines(data: bytes) -> list[str]:
    """All lines of some output. The last one may be incomplete."""
    return [line(each) for each in data.decode(errors="replace").removesuffix("\n").split("\n")] if data else []
