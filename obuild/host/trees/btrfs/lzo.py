"""Unpack LZO1X: https://docs.kernel.org/staging/lzo.html"""

from __future__ import annotations

#: The distance that ends a block.
_END = 16384


def unpacked(data: bytes, most: int) -> bytes:
    """What the block holds. ValueError if it is damaged, or holds more than `most` bytes."""
    found, at = bytearray(), 0

    def run(code: int, mask: int, base: int) -> int:
        """The length in some bits of a code, and the base; it goes on in the bytes after it if the bits are 0."""
        nonlocal at
        if code & mask:
            return (code & mask) + base
        length = mask + base
        while not data[at]:
            length += 255
            at += 1
            if length > most:
                raise ValueError("a run that is too long")
        at += 1
        return length + data[at - 1]

    def literals(count: int) -> None:
        nonlocal at
        found.extend(data[at : at + count])
        at += count
        if at > len(data):
            raise ValueError("literals that are cut off")

    def match(distance: int, length: int) -> None:
        begin = len(found) - distance
        if begin < 0:
            raise ValueError("a match before the beginning")
        while length > 0:
            part = found[begin : begin + min(length, distance)]
            found.extend(part)
            length -= len(part)

    # After literals: 0 none, 1 to 3 so many, 4 more.
    state = 0
    if data[0] > 17:
        at = 1
        count = data[0] - 17
        literals(count)
        state = min(count, 4)
    while True:
        code = data[at]
        at += 1
        if code < 16 and not state:
            literals(run(code, 15, 3))
            state = 4
            continue
        if code < 16:
            distance = (data[at] << 2) + (code >> 2) + (2049 if state == 4 else 1)
            at += 1
            match(distance, 3 if state == 4 else 2)
            state = code & 3
        elif code < 64:
            if code < 32:
                length = run(code, 7, 2)
                distance = 16384 + ((code & 8) << 11)
            else:
                length = run(code, 31, 2)
                distance = 1
            pair = data[at] | data[at + 1] << 8
            at += 2
            distance += pair >> 2
            if code < 32 and distance == _END:
                return bytes(found)
            match(distance, length)
            state = pair & 3
        else:
            length = 5 + (code >> 5 & 3) if code >= 128 else 3 + (code >> 5 & 1)
            distance = (data[at] << 3) + (code >> 2 & 7) + 1
            at += 1
            match(distance, length)
            state = code & 3
        if len(found) > most:
            raise ValueError("more than a sector")
        literals(state)
