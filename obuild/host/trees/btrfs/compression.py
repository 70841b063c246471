"""The ways in which btrfs compresses a part of a file."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from obuild.host import zstd
from obuild.host.trees.btrfs import lzo

#: No compressed part is longer once it is unpacked.
LONGEST = 128 << 10

_ZLIB, _LZO, _ZSTD = 1, 2, 3


def unpacked(data: bytes, how: int, length: int, sector: int) -> bytes:
    """The `length` bytes that were compressed. ValueError if the data is damaged."""
    if length > LONGEST:
        raise ValueError("a compressed part of a file is too long")
    if how == _ZLIB:
        try:
            found = zlib.decompressobj().decompress(data, length)
        except zlib.error as error:
            raise ValueError(f"a compressed part of a file: {error}") from error
    elif how == _ZSTD:
        found = zstd.decompress(data, LONGEST)[:length]
    elif how == _LZO:
        found = b"".join(_segments(data, sector))[:length]
    else:
        raise ValueError(f"a part of a file has the compression {how}")
    return found.ljust(length, b"\0")


def _segments(data: bytes, sector: int) -> Iterator[bytes]:
    """Each sector is packed for itself: a length, and the data. No length lies across a border of two sectors."""
    (end,) = struct.unpack_from("<I", data)
    at = 4
    if end > len(data):
        raise ValueError("a compressed part of a file is cut off")
    while at < end:
        if sector - at % sector < 4:
            at += sector - at % sector
            if at >= end:
                return
        (length,) = struct.unpack_from("<I", data, at)
        yield lzo.unpacked(data[at + 4 : at + 4 + length], sector)
        at += 4 + length
