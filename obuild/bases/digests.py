"""The digests of base image files. They are remembered, so that each image is read only once."""

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
    """Return the sha256 of the disk in an image, or of another file. It is computed once for each stamp.

    UsageError if an image is not a sound disk.
    """
    memo = store.state / "digests.json"
    kept = read_memo(memo)
    entry = kept.get(path.name)
    of = "file" if path.suffix in (KERNEL, INITRD, NVRAM) else "disk"
    if isinstance(entry, list) and entry[:4] == [*seen, of] and is_sha256(entry[4:]):
        return str(entry[4])
    if of == "disk":
        from obuild.host import disk_content  # late: most builds find the digest in the memo

        digest = disk_content.digest(qemu_img.inspect(path), store.state if store.writable else None)
    else:
        with open_file(path, follow=True) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    if store.writable:
        replace_text(memo, json.dumps({**read_memo(memo), path.name: [*seen, of, digest]}))
    return digest


def is_sha256(rest: list[object]) -> bool:
    """Return whether this is one digest and nothing else. A damaged memo may hold anything."""
    return len(rest) == 1 and re.fullmatch(SHA256, str(rest[0])) is not None


def read_memo(memo: Path) -> dict[str, object]:
    """Return what is remembered; nothing if the file is missing or damaged, since it only saves time."""
    try:
        kept = json.loads(read_text(memo))
    except (OSError, ValueError, RecursionError):
        return {}
    return kept if isinstance(kept, dict) else {}
