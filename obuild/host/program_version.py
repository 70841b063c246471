"""What programs say of their version. A memo keeps that until the program is replaced."""

from __future__ import annotations

import json
from pathlib import Path

from obuild.host import process, stamp
from obuild.host.fs import replace_text
from obuild.host.regular import read_text


def told(program: str, *, memo: Path | None = None) -> str:
    """The first line of `PROGRAM --version`. UsageError if there is no such program.

    It is kept in the file `memo`, if any.
    """
    if memo is None:
        return process.run([program, "--version"]).decode(errors="replace").partition("\n")[0]
    path = Path(process.require(program)).resolve()
    key = [str(path), *stamp.of(path)]
    try:
        kept = json.loads(read_text(memo))
        if kept["key"] == key:
            return str(kept["said"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    said = told(program)
    replace_text(memo, json.dumps({"key": key, "said": said}))
    return said
