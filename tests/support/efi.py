"""Programs for UEFI: the smallest stub, and what is in a unified kernel image."""

from __future__ import annotations

import struct


def stub(*, room: int = 8, version: int = 252) -> bytes:
    """A PE program with one section, and room in its header for `room` more; it says that it is systemd's stub."""
    dos = b"MZ".ljust(60, b"\0") + struct.pack("<I", 64)
    coff = b"PE\0\0" + struct.pack("<HHIIIHH", 0x8664, 1, 0, 0, 0, 240, 0x22E)
    headers_size = -(-(64 + 24 + 240 + 40 * (1 + room)) // 512) * 512
    optional = struct.pack("<HBBIIIII", 0x20B, 0, 0, 512, 512, 0, 0x1000, 0x1000)
    optional += struct.pack("<QIIHHHHHHIIIIHH", 0, 512, 512, 0, 0, 0, 0, 0, 0, 0, 0x1200, headers_size, 7, 10, 0)
    optional += struct.pack("<QQQQII", 0, 0, 0, 0, 0, 16) + bytes(16 * 8)
    magic = b"\xc3#### LoaderInfo: systemd-stub %d.39 ####" % version
    section = struct.pack("<8sIIIIIIHHI", b".text", 16, 0x1000, 512, headers_size, 0, 0, 0, 0, 0x60000020)
    return (dos + coff + optional + section).ljust(headers_size, b"\0") + magic.ljust(512, b"\0")


def sections(image: bytes) -> dict[str, tuple[int, bytes]]:
    """The sections of a program by name: their addresses, and their contents."""
    start = struct.unpack_from("<I", image, 60)[0]
    count, optional = struct.unpack_from("<2xH12xH", image, start + 4)
    found = {}
    for index in range(count):
        name, size, address, raw, offset = struct.unpack_from("<8sIIII", image, start + 24 + optional + 40 * index)
        assert raw >= size
        found[name.rstrip(b"\0").decode()] = (address, image[offset : offset + size])
    return found
