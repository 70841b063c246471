"""Which QEMU this host has, and whether machines that outlast a step were ever tried with it.

Warm machines need more of QEMU than a boot does: commands of QMP that few people use, and memory that is mapped
as we expect. So `--vm auto` keeps machines warm only with a version that this was tried with.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from obuild.host import process, stamp
from obuild.host.fs import replace_text
from obuild.host.regular import read_text

Version = tuple[int, int]

#: The first and the last version of QEMU that warm machines were tried with.
TRIED: tuple[Version, Version] = ((7, 2), (7, 2))


def untried(binary: str, *, memo: Path) -> str:
    """Why this QEMU is none that warm machines were tried with; "" if it is one.

    Its answer is kept in the file `memo` until the program is replaced.
    """
    found = _version(binary, memo)
    if found is None:
        return f"{binary} does not say its version"
    first, last = TRIED
    if first <= found <= last:
        return ""
    tried = _shown(first) if first == last else f"{_shown(first)} to {_shown(last)}"
    return f"this is QEMU {_shown(found)}, and they were tried with {tried}"


def _version(binary: str, memo: Path) -> Version | None:
    """Major and minor number. UsageError if there is no such program."""
    path = Path(process.require(binary)).resolve()
    key = [str(path), *stamp.of(path)]
    try:
        kept = json.loads(read_text(memo))
        if kept["key"] == key:
            return _parse(str(kept["said"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    said = process.run([binary, "--version"]).decode(errors="replace").partition("\n")[0]
    replace_text(memo, json.dumps({"key": key, "said": said}))
    return _parse(said)


def _parse(said: str) -> Version | None:
    found = re.search(r"version ([0-9]{1,4})\.([0-9]{1,4})", said)
    return (int(found[1]), int(found[2])) if found else None


def _shown(version: Version) -> str:
    return f"{version[0]}.{version[1]}"
