"""Cut what an image holds into slices: aligned parts of its disk, with only the blocks that the image has itself.

A block of 4 KiB is data, reads as zeros, or belongs to the image below. Data that is all zeros counts as zeros. So
the slices of an image do not depend on how its file is laid out: the image that is written from them has the same.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from obuild.host import nbd, qemu_img
from obuild.host.qcow2 import BLOCK, Extent
from obuild.host.qemu_img import Part
from obuild.host.regular import open_file

#: The size of a slice, in bytes.
SLICE = 4 << 20

_ZEROS = bytes(BLOCK)


class Slice(NamedTuple):
    """What of `SLICE` bytes from `offset` on an image holds. The extents are relative to `offset`, and in order.

    `digest` is that of the bytes of `data` one after the other, "" if there are none.
    """

    offset: int
    digest: str
    data: tuple[Extent, ...]
    zeros: tuple[Extent, ...]

    @property
    def length(self) -> int:
        """The number of bytes of data."""
        return sum(length for _, length in self.data)


class Cutter:
    """Reads the slices of an image; any thread may call `cut`. A context manager."""

    def __init__(self, image: Path, *, blank: Sequence[int] = ()) -> None:
        """`blank` are the offsets of blocks that are keys of this store: lines of nothing take their place."""
        self.size = qemu_img.virtual_size(image)
        self._image, self._blank = image, blank
        self._based = bool(qemu_img.backing_file(image))
        self._stack, self._lock = ExitStack(), Lock()
        self._parts: dict[int, list[Part]] = {}
        parts = qemu_img.own_parts(image)
        self._plain = all(part.zero or _is_plain(part, self.size) for part in parts)
        for part in parts if self._plain else _widened(parts, self.size):
            for piece in _split(part):
                self._parts.setdefault(piece.start // SLICE, []).append(piece)

    def __enter__(self) -> Cutter:
        with ExitStack() as stack:
            if self._plain:
                self._file = stack.enter_context(open_file(self._image)).fileno()
            else:
                self._disk = stack.enter_context(nbd.disk_of(self._image))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def numbers(self) -> list[int]:
        """Which slices there are, in order."""
        return sorted(self._parts)

    def length(self, number: int) -> int:
        """The most data that a slice may have, in bytes."""
        return sum(part.length for part in self._parts[number] if not part.zero)

    def cut(self, number: int) -> tuple[Slice, bytes]:
        """A slice, and its data. It has neither data nor zeros if the image adds nothing there."""
        begin = number * SLICE
        data: list[Extent] = []
        zeros: list[Extent] = []
        pieces: list[bytes] = []
        for part in self._parts[number]:
            content = b"" if part.zero else self._read(part)
            for start, length, zero in _runs(content) if content else [(0, part.length, True)]:
                if zero:
                    _add(zeros, part.start - begin + start, length)
                else:
                    _add(data, part.start - begin + start, length)
                    pieces.append(content if length == len(content) else content[start : start + length])
        whole = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        digest = f"sha256:{hashlib.sha256(whole).hexdigest()}" if data else ""
        return Slice(begin, digest, tuple(data), tuple(zeros) if self._based else ()), whole

    def _read(self, part: Part) -> bytes:
        if part.offset is not None and self._plain:
            content = os.pread(self._file, part.length, part.offset)
            content = content.ljust(part.length, b"\0")  # the file may end before its last cluster does
        else:
            with self._lock:
                content = self._disk.read(part.start, part.length)
        for at in self._blank:
            if part.start <= at < part.start + part.length:
                inside = at - part.start
                content = content[:inside] + b"\n" * BLOCK + content[inside + BLOCK :]
        return content


def _is_plain(part: Part, size: int) -> bool:
    """Whether a part is in whole blocks, and its bytes are in the file as they are."""
    end = part.start + part.length
    return part.offset is not None and not part.start % BLOCK and (not end % BLOCK or end == size)


def _widened(parts: Sequence[Part], size: int) -> Iterator[Part]:
    """The parts in whole blocks; what is read instead of the rest is what a guest would read there."""
    end = 0
    for part in parts:
        start = max(end, part.start // BLOCK * BLOCK)
        end = max(start, min(size, -(-(part.start + part.length) // BLOCK) * BLOCK))
        if start < end:
            yield Part(start, end - start, False, None)


def _split(part: Part) -> Iterator[Part]:
    """The parts of a part in each slice."""
    done = 0
    while done < part.length:
        start = part.start + done
        length = min(part.length - done, SLICE - start % SLICE)
        yield Part(start, length, part.zero, None if part.offset is None else part.offset + done)
        done += length


def _runs(content: bytes) -> Iterator[tuple[int, int, bool]]:
    """Where blocks of zeros, and others, begin, their length, and whether they are zeros."""
    begin, zero = 0, False
    for at in range(0, len(content), BLOCK):
        block = content[at : at + BLOCK]
        now = block == _ZEROS[: len(block)]
        if at and now != zero:
            yield begin, at - begin, zero
            begin = at
        zero = now
    yield begin, len(content) - begin, zero


def _add(extents: list[Extent], start: int, length: int) -> None:
    """Add an extent, as one with the last if it follows that."""
    if extents and sum(extents[-1]) == start:
        start, length = extents[-1][0], extents[-1][1] + length
        extents.pop()
    extents.append((start, length))
