"""Write a unified kernel image: systemd's EFI stub with kernel, initrd and command line as sections.

https://uapi-group.org/specifications/specs/unified_kernel_image/ and
https://learn.microsoft.com/en-us/windows/win32/debug/pe-format have the formats.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from obuild.errors import ObuildError

#: IMAGE_SCN_CNT_INITIALIZED_DATA and IMAGE_SCN_MEM_READ
_DATA = 0x40000040

#: Sections are aligned to pages, whatever the stub's own alignment is.
_PAGE = 0x1000

_SECTION = struct.Struct("<8sIIIIIIHHI")


def build(stub: bytes, sections: Mapping[str, bytes]) -> bytes:
    """Return the stub with more sections, in that order. ObuildError if `stub` has no room for their headers."""
    image = bytearray(stub)
    coff = header(stub) + 4
    count, optional_size = struct.unpack_from("<2xH12xH", image, coff)
    optional = coff + 20
    section_alignment, file_alignment = struct.unpack_from("<II", image, optional + 32)
    headers_size = struct.unpack_from("<I", image, optional + 60)[0]
    table = optional + optional_size
    if table + (count + len(sections)) * _SECTION.size > headers_size:
        raise ObuildError("systemd's EFI stub has no room for more sections")
    present = [_SECTION.unpack_from(image, table + index * _SECTION.size) for index in range(count)]
    address, added = _up(max(size + start for _, size, start, *_ in present), _PAGE), 0
    for index, (name, content) in enumerate(sections.items(), count):
        image += bytes(_up(len(image), file_alignment) - len(image))
        raw = _up(len(content), file_alignment)
        _SECTION.pack_into(
            image,
            table + index * _SECTION.size,
            *(name.encode(), len(content), address, raw, len(image), 0, 0, 0, 0, _DATA),
        )
        image += content.ljust(raw, b"\0")
        address, added = _up(address + len(content), _PAGE), added + raw
    struct.pack_into("<H", image, coff + 2, count + len(sections))
    initialized = struct.unpack_from("<I", image, optional + 8)[0]
    struct.pack_into("<I", image, optional + 8, initialized + added)
    struct.pack_into("<I", image, optional + 56, _up(address, section_alignment))
    struct.pack_into("<I", image, optional + 64, 0)  # the checksum, which UEFI ignores
    return bytes(image)


def header(image: bytes) -> int:
    """Return where the PE header of a program begins. ObuildError if there is none."""
    start = int(struct.unpack_from("<I", image, 60)[0]) if image[:2] == b"MZ" and len(image) > 64 else 0
    if not start or image[start : start + 4] != b"PE\0\0":
        raise ObuildError("not a program for UEFI: it has no PE header")
    return start


def _up(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment
