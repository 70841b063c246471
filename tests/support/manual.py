"""The examples in docs/spec.md, and their output as printed there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "spec.md"

_HEADING = re.compile(r"^##+ (.+)$", re.MULTILINE)
_FENCE = re.compile(r"^```(lisp|text)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Example:
    """A spec; `section` is the heading above it, `output` what its commands print, "" if nothing."""

    section: str
    spec: str
    output: str = ""


def examples() -> list[Example]:
    """All examples, from top to bottom."""
    found: list[Example] = []
    _, *parts = _HEADING.split(PAGE.read_text(encoding="utf-8"))
    for section, text in zip(parts[::2], parts[1::2], strict=True):
        for kind, block in _FENCE.findall(text):
            if kind == "lisp":
                found.append(Example(section, block))
            else:
                last = found.pop()
                assert (last.section, last.output) == (section, ""), f"no example before the output in {section}"
                found.append(Example(section, last.spec, block))
    return found


def example(section: str) -> Example:
    """The only example of a section."""
    (found,) = (each for each in examples() if each.section == section)
    return found
