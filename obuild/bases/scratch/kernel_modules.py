"""Drivers of a Linux kernel, in the order in which they can be loaded.

What a module needs is read from the module itself, so neither depmod nor the kernel's own architecture is needed.
"""

from __future__ import annotations

import gzip
import lzma
import re
from collections.abc import Callable, Iterable

from obuild.errors import UsageError
from obuild.host import process

_FILE = re.compile(r"(.+)\.ko(?:\.(?:xz|zst|gz))?")
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


class Modules:
    """Modules by file name, which `read` reads. `builtin` has the file names of those in the kernel itself."""

    def __init__(self, files: Iterable[str], read: Callable[[str], bytes], builtin: Iterable[str]) -> None:
        self._read = read
        self._files = {_plain(name): name for name in files if _FILE.fullmatch(name)}
        self._builtin = {_plain(name) for name in builtin}

    def closure(self, names: Iterable[str], *, must: bool) -> dict[str, bytes]:
        """Return the contents of these modules and their dependencies, by file name; dependencies come first.

        Those in the kernel itself are left out. UsageError if one is not there at all and `must`.
        """
        found: dict[str, bytes] = {}
        for name in names:
            self._add(name, found, must=must)
        return found

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those of the names that are neither modules nor in the kernel itself."""
        return [name for name in names if name.replace("-", "_") not in (self._builtin | self._files.keys())]

    def _add(self, name: str, found: dict[str, bytes], *, must: bool) -> None:
        file = self._files.get(name.replace("-", "_"))
        if file is None:
            if must and name.replace("-", "_") not in self._builtin:
                raise UsageError(
                    f"the kernel of the new root has no driver {name}, which its initial RAM disk needs"
                )
            return
        plain = f"{_plain(file)}.ko"
        if plain in found:
            return
        data = _unpacked(file, self._read(file))
        depends = _DEPENDS.search(data)
        for other in depends[1].decode().split(",") if depends and depends[1] else ():
            self._add(other, found, must=must)
        found[plain] = data


def _unpacked(file: str, data: bytes) -> bytes:
    """The content of a module's file. UsageError if that needs a program that is not installed."""
    if file.endswith(".xz"):
        return lzma.decompress(data)
    if file.endswith(".gz"):
        return gzip.decompress(data)
    return process.run(["zstd", "-dc"], input=data) if file.endswith(".zst") else data


def _plain(name: str) -> str:
    """The name of a module from that of its file."""
    match = _FILE.fullmatch(name)
    return (match[1] if match else name).replace("-", "_")
