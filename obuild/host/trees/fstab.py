"""What a guest mounts from its own disk: fstab(5)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from obuild.host.partitions import Partition

#: A partition of the first disk: any other is not the disk with the root.
_KERNEL_NAME = re.compile(r"/dev/(?:[shv]da|xvda|nvme0n1p|mmcblk[0-9]+p)([0-9]+)")
_BY = re.compile(r"/dev/disk/by-(uuid|label|partuuid|partlabel)/")
_ESCAPE = re.compile(r"\\([0-7]{3})")


class Names(NamedTuple):
    """What the file system of a partition is called."""

    uuid: str
    label: str


class _Line(NamedTuple):
    device: str
    path: str  # without a slash at its beginning
    options: list[str]


def mounts(text: str, parts: list[Partition], names: Callable[[Partition], Names]) -> dict[str, Partition]:
    """The partition for each folder that is mounted from one of `parts`; paths have no leading slash.

    The root is left out. So are lines about other disks, swap, and what is no disk.
    """
    found = {}
    for line in _lines(text):
        part = next((part for part in parts if _is(line.device, part, names)), None)
        if part is not None:
            found[line.path] = part
    return found


def subvolumes(text: str, root: Partition, names: Names) -> dict[str, str]:
    """The option that chooses the subvolume for each folder that is mounted from the root's own partition."""
    found = {}
    for line in _lines(text):
        chosen = [option for option in line.options if option.startswith(("subvol=", "subvolid="))]
        if chosen and _is(line.device, root, lambda part: names):
            found[line.path] = chosen[-1]
    return found


def absent(text: str, here: list[Partition], names: Callable[[Partition], Names]) -> dict[str, str]:
    """The device for each folder that a machine mounts as it boots, from something that is not among `here`.

    That is another disk, another computer, or another folder. What a machine may boot without is left out
    (`noauto`, `nofail`), and so are file systems that have no device, like tmpfs.
    """
    return {
        line.path: line.device
        for line in _lines(text)
        if re.search("[/=:]", line.device)
        and not {"noauto", "nofail"} & set(line.options)
        and not any(_is(line.device, part, names) for part in here)
    }


def _lines(text: str) -> Iterator[_Line]:
    """What is mounted in folders; the root is left out, and swap."""
    for line in text.splitlines():
        fields = [_ESCAPE.sub(lambda code: chr(int(code[1], 8)), field) for field in line.split()]
        if len(fields) < 3 or fields[0].startswith("#") or not fields[1].strip("/"):
            continue
        if fields[2] != "swap" and fields[1].startswith("/"):
            yield _Line(fields[0], fields[1].strip("/"), fields[3].split(",") if len(fields) > 3 else [])


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
