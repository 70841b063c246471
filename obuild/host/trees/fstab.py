"""What a guest mounts from its own disk: fstab(5)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from obuild.host.partitions import Partition

_KERNEL_NAME = re.compile(r"/dev/(?:[shv]d[a-z]|xvd[a-z]|nvme[0-9]+n[0-9]+p|mmcblk[0-9]+p)([0-9]+)")
_BY = re.compile(r"/dev/disk/by-(uuid|label|partuuid|partlabel)/")
_ESCAPE = re.compile(r"\\([0-7]{3})")


class Names(NamedTuple):
    """What the file system of a partition is called."""

    uuid: str
    label: str


def mounts(text: str, parts: list[Partition], names: Callable[[Partition], Names]) -> dict[str, Partition]:
    """The partition for each folder that is mounted from one of `parts`; paths have no leading slash.

    The root is left out. So are lines about other disks, swap, and what is no disk.
    """
    found = {}
    for line in text.splitlines():
        fields = [_ESCAPE.sub(lambda code: chr(int(code[1], 8)), field) for field in line.split()]
        if len(fields) < 3 or fields[0].startswith("#") or not fields[1].strip("/"):
            continue
        part = next((part for part in parts if _is(fields[0], part, names)), None)
        if part is not None and fields[2] != "swap" and fields[1].startswith("/"):
            found[fields[1].strip("/")] = part
    return found


def _is(device: str, part: Partition, names: Callable[[Partition], Names]) -> bool:
    if kernel := _KERNEL_NAME.fullmatch(device):
        return int(kernel[1]) == part.number
    key, _, value = _BY.sub(lambda by: f"{by[1]}=", device).partition("=")
    value = value.strip('"')
    match key.upper():
        case "PARTUUID":
            return value.lower() == part.uuid.lower()
        case "PARTLABEL":
            return bool(value) and value == part.name
        case "UUID":
            return value.lower() == names(part).uuid.lower()
        case "LABEL":
            return bool(value) and value == names(part).label
    return False
