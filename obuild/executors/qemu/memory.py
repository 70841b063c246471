"""The memory of a paused machine: how it differs from the file that it started from.

QEMU maps that file privately, so the kernel keeps a private copy of each page that the guest has written to, and
/proc/PID/pagemap shows which: https://docs.kernel.org/admin-guide/mm/pagemap.html. All other pages are in the
file, and once in the page cache, however many machines started from it. A delta holds the pages that differ:

    8 bytes     OBUILDR1
    8 bytes     the number of runs of pages
    16 bytes    for each run, its first page and its number of pages
    the rest    the pages themselves

Numbers are 64 bits, little endian. The page size is the host's.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

from obuild.host import qemu_img

PAGE = mmap.PAGESIZE

_MAGIC = b"OBUILDR1"
_COUNT = struct.Struct("<Q")
_RUN = struct.Struct("<QQ")

#: How many bytes are copied at a time.
_CHUNK = 4 << 20

_BLOCK = 1 << 16
_ZEROS = memoryview(bytes(_BLOCK))

#: By the highest byte of a page map entry (0x80 present, 0x40 swapped out, 0x20 page of a file): is it private?
_OWN = bytes(bool((byte & 0x80 and not byte & 0x20) or byte & 0x40) for byte in range(256))


@dataclass(frozen=True, slots=True)
class Ram:
    """The memory of the process `pid`: its address there, and its size in bytes."""

    pid: int
    start: int
    size: int

    def changed(self) -> list[tuple[int, int]]:
        """Return the runs of pages that differ from the file: (first page, count). OSError if access is denied."""
        with Path(f"/proc/{self.pid}/pagemap").open("rb", buffering=0) as file:
            entries = os.pread(file.fileno(), self.size // PAGE * 8, self.start // PAGE * 8)
        found = re.finditer(b"\x01+", entries[7::8].translate(_OWN))
        return [(match.start(), match.end() - match.start()) for match in found]

    def write_delta(self, runs: Sequence[tuple[int, int]], path: Path) -> None:
        """Write the pages of these runs to a new file."""
        with path.open("wb") as out:
            out.write(_MAGIC + _COUNT.pack(len(runs)) + b"".join(_RUN.pack(*run) for run in runs))
            for _, data in self._read(runs):
                out.write(data)

    def write_all(self, runs: Sequence[tuple[int, int]], file: Path | None, path: Path) -> None:
        """Write the whole memory to a new file: its initial content, `file` or zeros, with these runs in it.

        Zeros become holes where possible, and blocks are shared where the file system can.
        """
        if file is not None:
            qemu_img.copy(file, path)
        with path.open("r+b" if file else "wb") as out:
            out.truncate(self.size)
            for offset, data in self._read(runs):
                for at in range(0, len(data), _BLOCK):
                    block = data[at : at + _BLOCK]
                    if file or block != _ZEROS[: len(block)]:
                        os.pwrite(out.fileno(), block, offset + at)

    def apply(self, delta: Path) -> None:
        """Copy the pages of a delta to their places. ValueError if it is not a delta of this memory."""
        with delta.open("rb") as file:
            head = file.read(len(_MAGIC) + _COUNT.size)
            if head[: len(_MAGIC)] != _MAGIC or len(head) != len(_MAGIC) + _COUNT.size:
                raise ValueError("it is not a delta")
            (count,) = _COUNT.unpack_from(head, len(_MAGIC))
            table = file.read(count * _RUN.size) if count <= self.size // PAGE else b""
            if len(table) != count * _RUN.size:
                raise ValueError("it is truncated")
            for first, pages in _RUN.iter_unpack(table):
                if first + pages > self.size // PAGE:
                    raise ValueError("it belongs to a larger memory")
                self._write(file, first * PAGE, pages * PAGE)

    def _read(self, runs: Sequence[tuple[int, int]]) -> Iterator[tuple[int, memoryview]]:
        """Yield offset and content of each run, in pieces. A piece is valid until the next one is requested."""
        buffer = mmap.mmap(-1, _CHUNK)
        for first, pages in runs:
            for offset in range(first * PAGE, (first + pages) * PAGE, _CHUNK):
                size = min(_CHUNK, (first + pages) * PAGE - offset)
                _move(_calls().process_vm_readv, self.pid, buffer, self.start + offset, size)
                yield offset, memoryview(buffer)[:size]

    def _write(self, file: BinaryIO, offset: int, size: int) -> None:
        buffer = mmap.mmap(-1, min(size, _CHUNK) or 1)
        while size > 0:
            piece = min(size, _CHUNK)
            if file.readinto(memoryview(buffer)[:piece]) != piece:  # type: ignore[attr-defined]
                raise ValueError("it is truncated")
            _move(_calls().process_vm_writev, self.pid, buffer, self.start + offset, piece)
            offset, size = offset + piece, size - piece


def of(pid: int, file: Path | None, size: int) -> Ram:
    """Find the memory of `size` bytes in the process `pid` that started from `file`. OSError if not found."""
    inode = file.stat().st_ino if file else 0
    with Path(f"/proc/{pid}/maps").open(encoding="utf-8", errors="replace") as maps:
        for line in maps:
            addresses, _, _, _, found, *_ = line.split(maxsplit=5)
            start, end = (int(address, 16) for address in addresses.split("-"))
            if int(found) == inode and end - start == size:
                return Ram(pid, start, size)
    raise OSError(errno.ENOENT, "QEMU has not mapped its memory as expected")


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


@cache
def _calls() -> ctypes.CDLL:
    """Return the C library, with the two calls that copy between processes: see process_vm_readv(2)."""
    library = ctypes.CDLL(None, use_errno=True)
    for call in (library.process_vm_readv, library.process_vm_writev):
        vector = ctypes.POINTER(_Iovec)
        call.argtypes = [ctypes.c_int, vector, ctypes.c_ulong, vector, ctypes.c_ulong, ctypes.c_ulong]
        call.restype = ctypes.c_ssize_t
    return library


def _move(call: ctypes._NamedFuncPointer, pid: int, buffer: mmap.mmap, address: int, size: int) -> None:
    """Copy `size` bytes between the buffer and a process's memory, in the direction of `call`."""
    ours = _Iovec(ctypes.addressof(ctypes.c_char.from_buffer(buffer)), size)
    theirs = _Iovec(address, size)
    if call(pid, ours, 1, theirs, 1, 0) != size:
        code = ctypes.get_errno() or errno.EFAULT
        raise OSError(code, f"cannot copy the memory of QEMU: {os.strerror(code)}")
