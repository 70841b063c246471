"""Layers whose images have random content."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path
from typing import NamedTuple

from obuild.host import qemu_img
from obuild.plan import keys
from obuild.plan.keys import LayerId
from obuild.plan.steps import Chain, Step
from obuild.store.layers import Store

#: The size of their disks, in bytes: two slices and a half, and no whole number of clusters or blocks.
SIZE = (10 << 20) + 3 * 4096 + 512


def scribble(image: Path, chance: random.Random, *, size: int = SIZE, count: int = 12) -> None:
    """Write data and zeros to random places of a disk, and to its end."""
    commands: list[str] = ["-c", f"write -P 7 {size - 512} 512"]
    for _ in range(count):
        length = chance.choice((512, 4096, 12288, 70_144, 1 << 20))
        start = chance.randrange(0, size - length) // 512 * 512
        how = chance.choice((f"write -P {chance.randrange(1, 256)}", "write -P 0", "write -z", "write -z -u"))
        commands += ["-c", f"{how} {start} {length}"]
    subprocess.run(["qemu-io", "-f", "qcow2", *commands, image], check=True, stdout=subprocess.DEVNULL)


class Plain(NamedTuple):
    """A layer with this key, without a step."""

    key: str
    parent: LayerId | None = None

    @property
    def id(self) -> LayerId:
        return keys.layer_id(self.key)


def make(store: Store, step: Step | Plain, chance: random.Random, *, size: int = SIZE) -> LayerId:
    """Make a layer with random changes on its parent's."""
    with store.claim(step.id), store.draft(step) as draft:
        if draft.parent:
            qemu_img.create_overlay(draft.image, draft.below, size=size)
        else:
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", draft.image, str(size)], check=True)
        scribble(draft.image, chance, size=size)
        draft.log.write(f"log of {step.id}\n".encode())
    return step.id


def make_all(store: Store, chain: Chain, seed: int = 1) -> list[LayerId]:
    """Make the layers of a chain, the base's first."""
    chance = random.Random(seed)
    return [make(store, step, chance) for step in chain.steps]


def visible(image: Path, scratch: Path) -> bytes:
    """What a guest reads from the disk in an image."""
    raw = scratch / "visible.raw"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, raw], check=True)
    try:
        return raw.read_bytes()
    finally:
        raw.unlink()
