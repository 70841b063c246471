"""The list of checksums in a folder of exports, as sha256sum(1) reads it."""

from __future__ import annotations

import re
from pathlib import Path

from obuild.host import locks
from obuild.host.fs import replace_text

SUMS = "SHA256SUMS"

_SUM = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def noted(place: Path) -> str:
    """The checksum of an exported file; "" for a folder."""
    return next(
        (found[1] for line in _lines(place) if (found := _SUM.fullmatch(line)) and found[2] == place.name), ""
    )


def note(place: Path, digest: str | None) -> None:
    """Put the checksum of a file into the list, or remove it. A folder has none, but digests of its own."""
    with locks.folder_lock(place.parent):  # another export may do the same
        replace(place, digest)


def replace(place: Path, digest: str | None) -> None:
    """As `note`, for a caller that has the lock on the folder."""
    lines = _lines(place)
    kept = [line for line in lines if not (found := _SUM.fullmatch(line)) or found[2] != place.name]
    if digest is not None:
        kept.append(f"{digest}  {place.name}")
    if kept != lines:
        replace_text(place.with_name(SUMS), "".join(f"{line}\n" for line in kept))


def _lines(place: Path) -> list[str]:
    sums = place.with_name(SUMS)
    return sums.read_text(encoding="utf-8").splitlines() if sums.is_file() else []
