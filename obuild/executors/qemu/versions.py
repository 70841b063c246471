"""Which QEMU this host has, and whether warm machines were tested with it.

Warm machines need more of QEMU than a boot does: QMP commands that few people use, and memory mapped as we expect.
So `--vm auto` keeps machines warm only with a tested version.
"""

from __future__ import annotations

import re
from pathlib import Path

from obuild.host import program_version

Version = tuple[int, int]

#: The first and the last version of QEMU that warm machines were tested with.
TRIED: tuple[Version, Version] = ((7, 2), (7, 2))


def untried(binary: str, *, memo: Path | None = None) -> str:
    """Return "" if warm machines were tested with this QEMU, else a reason why not.

    QEMU's version is kept in the file `memo`, if any, until the program is replaced.
    """
    found = _parse(program_version.told(binary, memo=memo))
    if found is None:
        return f"{binary} does not report its version"
    first, last = TRIED
    if first <= found <= last:
        return ""
    tried = _shown(first) if first == last else f"{_shown(first)} to {_shown(last)}"
    return f"this is QEMU {_shown(found)}, and they were tested with {tried}"


def _parse(said: str) -> Version | None:
    found = re.search(r"version ([0-9]{1,4})\.([0-9]{1,4})", said)
    return (int(found[1]), int(found[2])) if found else None


def _shown(version: Version) -> str:
    return f"{version[0]}.{version[1]}"
