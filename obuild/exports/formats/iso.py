"""A live system on an ISO image: the layer's kernel, and its root as squashfs, to which an overlay is added."""

from __future__ import annotations

from pathlib import Path

from obuild.exports.disk import Disk
from obuild.exports.formats import files
from obuild.exports.iso import image
from obuild.exports.iso.medium import PAYLOAD, Entry
from obuild.guests.profile import Card


def check(size: int, card: Card) -> None:
    """See `image.check`."""
    image.check(size, card)


def write(disk: Disk, out: Path) -> None:
    """See `Format.write`."""
    with image.collect(disk, "live", out.name.removesuffix(".iso")) as made:
        files.write_squashfs(disk, made.medium.live / PAYLOAD)
        made.put_kernel("live.sh", {"persist": disk.options.persist})
        words = made.kernel.cmdline
        entries = [Entry(f"Start {made.title}", words)]
        if disk.options.persist:
            entries.append(Entry(f"Start {made.title} and keep no changes", f"{words} obuild.persist="))
        made.write(entries, out)
