"""Whether the log of XFS holds changes that are not in its files: XFS Filesystem Structure, Journaling Log.

The log is a ring of sectors of 512 bytes. Each begins with the number of its cycle, which grows by one when the
ring is full. A record has a header before its sectors. Unmounting, or remounting read-only, ends with a record
that says so.
"""

from __future__ import annotations

import bisect
import struct

from obuild.host.blocks import Blocks
from obuild.host.trees.xfs.superblock import Superblock

_SECTOR = 512
_MAGIC = b"\xfe\xed\xba\xbe"

#: The flag of the operation that ends a mount.
_UNMOUNT = 0x20

#: No record is longer, in sectors.
_LONGEST = (256 + 8) << 10 >> 9

#: For each so many bytes of a record, its header has one sector.
_PER_HEADER = 32 << 10


class _Log:
    def __init__(self, disk: Blocks, head: Superblock) -> None:
        self._disk, self._place = disk, head.place(head.log)
        self.size = head.log_count * head.block // _SECTOR
        if not self.size or head.log_count > head.group:
            raise ValueError("a wrong log")

    def sector(self, number: int) -> bytes:
        return self._disk.read(self._place + number % self.size * _SECTOR, _SECTOR)

    def cycle(self, number: int) -> int:
        sector = self.sector(number)
        (found,) = struct.unpack_from(">I", sector, 4 if sector.startswith(_MAGIC) else 0)
        return int(found)


def clean(disk: Blocks, head: Superblock) -> bool:
    """Whether all changes are in the files. ValueError if there is no log where it should be."""
    log = _Log(disk, head)
    first = log.cycle(0)
    if not first:  # never used
        return True
    # Behind the last record, sectors are of the cycle before.
    end = bisect.bisect_left(range(log.size), 1, key=lambda number: log.cycle(number) != first)
    for back in range(1, min(_LONGEST, log.size) + 1):
        record = log.sector(end - back)
        if record.startswith(_MAGIC):
            return _is_unmount(log, record, end - back, back)
    return False


def _is_unmount(log: _Log, record: bytes, number: int, length: int) -> bool:
    """Whether a record of `length` sectors, with its header, is nothing but the end of a mount."""
    (data,) = struct.unpack_from(">I", record, 12)
    (operations,) = struct.unpack_from(">I", record, 40)
    (size,) = struct.unpack_from(">I", record, 320)
    headers = max(1, -(-size // _PER_HEADER)) if struct.unpack_from(">I", record, 8)[0] & 2 else 1
    if operations != 1 or headers + -(-data // _SECTOR) != length:
        return False
    return bool(log.sector(number + headers)[9] & _UNMOUNT)
