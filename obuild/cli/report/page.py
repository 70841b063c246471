"""The page of a report: the template with style, script, graph and data in it, so that it needs nothing else."""

from __future__ import annotations

import json
import re
from html import escape
from pathlib import Path

_HERE = Path(__file__).parent

#: The parts of the script, in the order in which they are run.
_SCRIPTS = ("log.js", "bars.js", "page.js", "search.js")


def page(title: str, data: object, graph: str) -> str:
    """Return the page. `graph` is an SVG element; `title` and `data` may hold anything."""
    parts = {
        "title": escape(title),
        "css": _read("page.css"),
        "graph": graph,
        "data": embedded(data),
        "script": "".join(map(_read, _SCRIPTS)),
    }
    return re.sub(r"<!--(\w+)-->", lambda found: parts[found[1]], _read("page.html"))


def embedded(data: object) -> str:
    """JSON that can stand in an element `script`: without `<`, there is no end of it and no comment in it."""
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    return text.encode("utf-8", "replace").decode("utf-8")  # surrogates are not UTF-8


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
