"""A GUID partition table, written by sfdisk: the same bytes for the same input.

Types of partitions are those of the Discoverable Partitions Specification:
https://uapi-group.org/specifications/specs/discoverable_partitions_specification/
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from obuild.bases.scratch.root_partition import SECTOR
from obuild.host import sfdisk

#: The backup table at the end of the disk takes 33 sectors; partitions end at a whole MiB.
END = 1 << 20

VERITY_TYPES = {
    "x86_64": "2c7357ed-ebd2-46d9-aec1-23d437ec2bf5",
    "aarch64": "df3300ce-d69f-4c92-978c-9bfb0f38d820",
}


@dataclass(frozen=True, slots=True)
class Partition:
    """`start` and `size` are in bytes, in whole sectors."""

    name: str
    start: int
    size: int
    type: str
    id: UUID

    @property
    def end(self) -> int:
        return self.start + self.size


def script(identity: UUID, partitions: tuple[Partition, ...]) -> str:
    """Return the input of sfdisk."""
    lines = ["label: gpt", f"label-id: {identity}", "unit: sectors"]
    lines += [
        f"start={each.start // SECTOR}, size={each.size // SECTOR}, "
        f"type={each.type}, uuid={each.id}, name={each.name}"
        for each in partitions
    ]
    return "\n".join(lines) + "\n"


def write(disk: Path, identity: UUID, partitions: tuple[Partition, ...]) -> None:
    """Write the table to a raw disk; what is in the partitions stays."""
    sfdisk.write(disk, script(identity, partitions))
