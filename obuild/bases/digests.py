"""The digests of base image files, which are remembered: an image of gigabytes is read once."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from obuild.guests.profile import INITRD, KERNEL, NVRAM
from obuild.host import qemu_img
from obuild.host.fs import replace_text
from obuild.host.regular import open_file, read_text
from obuild.host.stamp import Stamp
from obuild.plan.keys import SHA256
from obuild.store.layers import Store


def of_file(store: Store, path: Path, seen: Stamp) -> str:
    """sha256 of a file, read once for each path, inode, size and time of change.

    An image that is read for the first time is checked to be a sound disk, so that a bad one is found early.
    """
    memo = store.state / "digests.json"
    kept = read_memo(memo)
    entry = kept.get(path.name)
    if isinstance(entry, list) and entry[:3] == list(seen) and is_sha256(entry[3:]):
        return str(entry[3])
    if path.suffix not in (KERNEL, INITRD, NVRAM):
        qemu_img.inspect(path)
    with open_file(path, follow=True) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if store.writable:
        replace_text(memo, json.dumps({**read_memo(memo), path.name: [*seen, digest]}))
    return digest


def is_sha256(rest: list[object]) -> bool:
    """Whether this is one digest, and nothing else; a damaged memo may hold anything."""
    return len(rest) == 1 and re.fullmatch(SHA256, str(rest[0])) is not None


def read_memo(memo: Path) -> dict[str, object]:
    """What is remembered; nothing if the file is not there or damaged, for it only saves time."""
    try:
        kept = json.loads(read_text(memo))
    except (OSError, ValueError, RecursionError):
        return {}
    return kept if isinstance(kept, dict) else {}
