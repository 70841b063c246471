"""What was deleted is cleared, and nothing else."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from obuild.exports import free_space
from tests.support.disks import by_hand, made
from tests.support.files import as_linux_sees_it, populate, populate_more

SECRET = b"a secret that must not travel"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
@pytest.mark.parametrize(
    ("options", "check"),
    [
        ("mkfs.xfs -q", "xfs_repair -n"),
        ("mkfs.xfs -q -b size=1024", "xfs_repair -n"),
        ("mkfs.btrfs -q -n 4096 -O ^no-holes", "btrfs check --check-data-csum"),
        ("mkfs.btrfs -q --mixed", "btrfs check --check-data-csum"),
        ("mkfs.btrfs -q --metadata single", "btrfs check --check-data-csum"),
    ],
)
def test_what_was_deleted_is_gone_and_nothing_else(tmp_path: Path, options: str, check: str) -> None:
    disk = made(tmp_path / "disk", 320, *options.split())
    kind = options.split()[0].removeprefix("mkfs.")
    with by_hand(disk, kind) as top:
        populate(top)
        populate_more(top)
        for number in range(300):
            (top / f"secret-{number}").write_bytes(SECRET * (1 + number * 7))
        subprocess.run(["sync", "-f", top], check=True)
        for number in range(300):
            (top / f"secret-{number}").unlink()
    assert SECRET in disk.read_bytes()
    before = as_linux_sees_it(disk, kind)
    cleared = free_space.clear(disk)
    assert cleared.size > 1 << 20
    assert not cleared.skipped
    assert SECRET not in disk.read_bytes()
    assert as_linux_sees_it(disk, kind) == before
    subprocess.run([*check.split(), disk], check=True, capture_output=True)
