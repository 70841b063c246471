"""What the ISO images of a layer have in common: its kernel, the initial RAM disk, and the boot menu."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from obuild.errors import UsageError
from obuild.exports.disk import Disk
from obuild.exports.iso import initramfs, kernel, medium
from obuild.exports.iso.kernel import Kernel
from obuild.exports.iso.medium import PAYLOAD, Entry, Medium
from obuild.guests.profile import Card
from obuild.host.trees import root


class Collected(NamedTuple):
    """An image being made. `lacking` are the drivers for media that the kernel lacks."""

    medium: Medium
    kernel: Kernel
    busybox: bytes
    lacking: list[str]
    title: str

    def put_kernel(self, script: str, settings: Mapping[str, str]) -> None:
        """Put the kernel and its initial RAM disk on the medium; see `initramfs.build`."""
        own = {"id": self.medium.id, "volume": self.medium.volume, "title": self.title}
        packed = initramfs.build(script, {**own, **settings}, self.kernel, self.busybox)
        (self.medium.live / "vmlinuz").write_bytes(self.kernel.image)
        (self.medium.live / "initrd").write_bytes(packed)

    def write(self, entries: Sequence[Entry], out: Path) -> None:
        """Write the image. Each entry of the menu is there a second time, which loads the payload into memory.

        Without drivers for media, only these are there. UsageError if the payload is too large for that.
        """
        size = (self.medium.live / PAYLOAD).stat().st_size
        if self.lacking:
            medium.check_memory(size)
        shown = [] if self.lacking else list(entries)
        if size < medium.MOST_MEMORY:
            shown += [Entry(f"{entry.text} (from memory)", entry.words, in_memory=True) for entry in entries]
        medium.write(self.medium, shown, out)


def check(size: int, card: Card) -> None:
    """UsageError unless the layer is one of Linux for which this host can make an ISO."""
    if card.os != "linux":
        raise UsageError(f"only a Linux layer can be made into an ISO, and this one has {card.os}")
    medium.check_host(card.arch)


@contextmanager
def collect(disk: Disk, what: str, title: str) -> Iterator[Collected]:
    """Begin an image that the boot menu calls `title`; the folder with its files is removed when the block ends.

    UsageError if the layer has no kernel that can be used.
    """
    id = disk.layer[:12]
    with root.of_raw(disk.path) as tree:
        found = kernel.find(tree, disk.card.cmdline)
        busybox = initramfs.busybox_for(disk.card.arch, tree)
        lacking = initramfs.missing(found)
        if lacking:
            disk.say(
                f"the kernel {found.release} has no driver {', '.join(lacking)}: "
                "the ISO is loaded into memory before it starts"
            )
        folder = disk.path.with_name(f"iso-{what}")
        volume = f"{what.upper()}_{id.upper()}"
        made = Medium(folder, f"{what}-{id}", volume, disk.card.arch, disk.id(f"iso {what}"))
        made.live.mkdir(parents=True)
        try:
            yield Collected(made, found, busybox, lacking, title)
        finally:
            shutil.rmtree(folder)
