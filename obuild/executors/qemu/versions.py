"""Which QEMU this host has, and whether warm machines were tested with it.

Warm machines need more of QEMU than a boot does: QMP commands that few people use, and memory mapped as we expect.
So `--vm auto` keeps machines warm only with a tested version.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from obuild.host import process, stamp
from obuild.host.fs import replace_text
from obuild.host.regular import read_text

Version = tuple[int, int]

#: The first and the last version of QEMU that warm machines were tested with.
TRIED: tuple[Version, Version] = ((7, 2), (7, 2))


def untried(binary: str, *, memo: Path | None = None) -> str:
    """Return "" if warm machines were tested with this QEMU, else a reason why not.

    QEMU's version is kept in the file `memo`, if any, until the program is replaced.
    """
    found = _parse(_kept(binary, memo) if memo else told(binary))
    if found is None:
        return f"{binary} does not report its version"
    first, last = TRIED
    if first <= found <= last:
        return ""
    tried = _shown(first) if first == last else f"{_shown(first)} to {_shown(last)}"
    return f"this is QEMU {_shown(found)}, and they were tested with {tried}"


def told(binary: str) -> str:
    """Return what QEMU says of itself. UsageError if there is no such program."""
    return process.run([binary, "--version"]).decode(errors="replace").partition("\n")[0]


def _kept(binary: str, memo: Path) -> str:
    """As `told`, from the memo if that is of this program."""
    path = Path(process.require(binary)).resolve()
    key = [str(path), *stamp.of(path)]
    try:
        kept = json.loads(read_text(memo))
        if kept["key"] == key:
            return str(kept["said"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    said = told(binary)
    replace_text(memo, json.dumps({"key": key, "said": said}))
    return said


def _parse(said: str) -> Version | None:
    found = re.search(r"version ([0-9]{1,4})\.([0-9]{1,4})", said)
    return (int(found[1]), int(found[2])) if found else None


def _shown(version: Version) -> str:
    return f"{version[0]}.{version[1]}"
