"""What a program for Linux needs to be loaded: ELF, 64 bits, little-endian. https://refspecs.linuxfoundation.org/elf/"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from obuild.errors import ObuildError

_LOAD, _DYNAMIC, _INTERPRETER = 1, 2, 3
_NEEDED, _STRINGS = 1, 5


#: What the header calls the architectures.
_MACHINES = {62: "x86_64", 183: "aarch64"}


def static_for(program: bytes) -> str:
    """The architecture that a program runs on without any library; "" if it needs one, or is not ELF."""
    try:
        dynamic = any(kind == _INTERPRETER for kind, *_ in _segments(program))
    except (ObuildError, struct.error):
        return ""
    return "" if dynamic else _MACHINES.get(struct.unpack_from("<18xH", program)[0], "")


def interpreter(program: bytes) -> str:
    """Return the path of the dynamic loader. ObuildError if the program has none, or is not ELF."""
    for kind, offset, _, size in _segments(program):
        if kind == _INTERPRETER:
            return program[offset : offset + size].rstrip(b"\0").decode()
    raise ObuildError("the program is not dynamically linked")


def needed(program: bytes) -> tuple[str, ...]:
    """Return the names of the libraries that a program or library is linked with."""
    segments = list(_segments(program))
    entries = [
        struct.unpack_from("<QQ", program, at)
        for kind, offset, _, size in segments
        if kind == _DYNAMIC
        for at in range(offset, offset + size, 16)
    ]
    strings = next((value for tag, value in entries if tag == _STRINGS), 0)
    base = next(
        (
            offset + strings - start
            for kind, offset, start, size in segments
            if kind == _LOAD and 0 <= strings - start < size
        ),
        0,
    )
    return tuple(
        program[base + value : program.index(b"\0", base + value)].decode()
        for tag, value in entries
        if tag == _NEEDED
    )


def _segments(program: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield each segment's type, offset in the file, address, and size in the file."""
    if program[:6] != b"\x7fELF\x02\x01":
        raise ObuildError("not a program for 64 bits, little-endian")
    start, size, count = struct.unpack_from("<32xQ14xHH", program, 0)
    for at in range(start, start + size * count, size):
        kind, offset, address, length = struct.unpack_from("<I4xQQ8xQ", program, at)
        yield kind, offset, address, length
