"""Our qcow2 images, read by QEMU."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest

from obuild.exports.disk import Disk, Options
from obuild.exports.formats import qcow2
from obuild.guests.profile import Card
from obuild.plan.keys import LayerId

CLUSTER = 64 << 10
#: What one L2 table covers.
REACH = 8192 * CLUSTER


def written(raw: Path, out: Path, compression: str = "zstd") -> Path:
    disk = Disk(raw, raw.stat().st_size, LayerId("1" * 64), Card(), Options(compression=compression))
    qcow2.write(disk, out)
    return out


def see_same(raw: Path, image: Path) -> None:
    subprocess.run(["qemu-img", "check", "-q", image], check=True)
    subprocess.run(["qemu-img", "compare", "-q", "-f", "raw", "-F", "qcow2", raw, image], check=True)


@pytest.mark.parametrize(("compression", "seed"), [("zstd", 0), ("zstd", 1), ("zlib", 2), ("none", 3)])
def test_qemu_reads_random_disks(tmp_path: Path, compression: str, seed: int) -> None:
    """With clusters that compress well, badly and not at all, zeros, and holes, up to the last sector."""
    chance = random.Random(seed)
    raw = tmp_path / "raw"
    size = chance.randrange(REACH, 2 * REACH) // 512 * 512
    with raw.open("wb") as file:
        file.truncate(size)
        for at in (*(chance.randrange(size // CLUSTER) * CLUSTER for _ in range(60)), size - 512):
            data = chance.choice(
                [b"text ", bytes(8), chance.randbytes(CLUSTER), chance.randbytes(999) + bytes(999)]
            )
            length = min(chance.choice([512, 5000, CLUSTER, 3 * CLUSTER]), size - at)
            os.pwrite(file.fileno(), (data * (length // len(data) + 1))[:length], at)
    see_same(raw, written(raw, tmp_path / "image", compression))


def test_an_empty_disk(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    with raw.open("wb") as file:
        file.truncate(10 << 30)
    image = written(raw, tmp_path / "image")
    see_same(raw, image)
    assert image.stat().st_size == 4 * CLUSTER


def test_the_number_of_cpus_does_not_change_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(random.Random(1).randbytes(3 << 20) + b"text" * (3 << 20))
    images = []
    for cpus in (1, 5):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, cpus=cpus: set(range(cpus)))
        images.append(written(raw, tmp_path / f"image{cpus}").read_bytes())
    assert images[0] == images[1]
