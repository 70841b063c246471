"""The mtree file of a finished layer: the size and the digest of each of its files.

The format is mtree(5), so `bsdtar`, `mtree` and others can check a layer. The names in a layer need no escapes.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from obuild.host import shortage
from obuild.host.fs import fsync
from obuild.host.regular import NotAFile, is_file, open_file, read_text

NAME = "mtree"


class Entry(NamedTuple):
    """One file. `size` is in bytes, `sha256` in hex."""

    size: int
    sha256: str


def write(folder: Path) -> None:
    """Write the mtree file for the files in `folder`."""
    lines = ["#mtree"]
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder)
        lines.append(f"./{name} type=file size={path.stat().st_size} sha256digest={digest(path)}")
    (folder / NAME).write_text("\n".join(lines) + "\n")


def seal(folder: Path) -> None:
    """Write the mtree file for `folder`, make its files read-only, and fsync everything."""
    write(folder)
    below = list(folder.rglob("*"))
    for path in below:
        if path.is_file():
            path.chmod(0o444)
    for path in (*reversed(below), folder):
        fsync(path)


def read(folder: Path) -> dict[str, Entry]:
    """The entries of a mtree file. ValueError if it cannot be read, or is not from `write`.

    OSError if this host has too little memory or too many open files to read it; so does `damage`.
    """
    try:
        text = read_text(folder / NAME)
    except OSError as error:
        shortage.see(error)
        raise ValueError(f"its {NAME} cannot be read: {error.strerror}") from error
    entries = {}
    for line in text.splitlines()[1:]:
        name, *words = line.split(" ")
        keys = dict(word.partition("=")[::2] for word in words)
        try:
            entries[name.removeprefix("./")] = Entry(int(keys["size"]), keys["sha256digest"])
        except (KeyError, ValueError) as error:
            raise ValueError(f"its {NAME} is damaged") from error
    if not entries:
        raise ValueError(f"its {NAME} is damaged")
    return entries


def damage(folder: Path, *, read_data: bool = False) -> list[str]:
    """How a layer differs from its mtree file, in words. Compares sizes; with `read_data`, also digests."""
    try:
        entries = read(folder)
    except ValueError as error:
        return [str(error)]
    found = []
    for name, entry in entries.items():
        path = folder / name
        try:
            if not is_file(path) and os.path.lexists(path):
                raise NotAFile(path)
            size = path.stat().st_size
            if size != entry.size:
                found.append(f"its {name} has {size} bytes, not {entry.size}")
            elif read_data and digest(path) != entry.sha256:
                found.append(f"the content of its {name} has changed")
        except FileNotFoundError:
            found.append(f"its {name} is missing")
        except OSError as error:
            shortage.see(error)
            found.append(f"its {name} cannot be read: {error.strerror}")
    return found


def digest(path: Path) -> str:
    """The sha256 of a file's content, in hex."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
