"""A store on a small file system that fills up: a clear error, no damage, and with more space the build succeeds.

Real ext4 on a loop device; only the guests are scripted. tests/vm/test_failures.py has one that fills its disk.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from obuild.store import fsck
from obuild.store.layers import Store
from tests.support import forked
from tests.support.disks import small_file_system
from tests.support.fake_obuild import fill

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")

SPEC = """((from tiny)
 (run (cache (c (target /c))) (shell "one"))
 (run (shell "two")))"""


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """The folder of an ext4 file system of 24 MiB."""
    with small_file_system(tmp_path / "small.img", tmp_path / "small", 24 << 20) as mount:
        yield mount


class Program:
    """The program with scripted guests, on a store that has the base `tiny`."""

    def __init__(self, root: Path, folder: Path, disk: Path) -> None:
        self.root = root
        self.spec = folder / "test.spec"
        self.spec.write_text(SPEC)
        self.source = folder / "source"
        self.source.mkdir()
        Store.open(root)
        assert self.run("base", "add", disk, "--name=tiny").returncode == 0

    def run(self, *args: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        argv = [*map(str, args), f"--store=qemu:{self.root}"]
        done = forked.run(argv, module="tests.support.fake_obuild", env=env)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def build(self, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
        return self.run("build", "--qemu-accel=tcg", "-f", self.spec, *options, self.source, env=env)

    def fill(self, leave: int) -> Path:
        """Fill the file system up to so many bytes."""
        filler = self.root.parent / "filler"
        if leave == 0:
            fill(self.root.parent)
        else:
            free = os.statvfs(self.root)
            filler.write_bytes(bytes(free.f_bavail * free.f_frsize - leave))
        return filler


@pytest.fixture
def program(small: Path, tmp_path: Path, qcow2_disk: Path) -> Program:
    return Program(small / "store", tmp_path, qcow2_disk)


@pytest.mark.parametrize("what", ["output", "cache", "image", "commit.sealing", "commit.done"])
def test_a_full_disk_at_any_point_is_reported_and_damages_nothing(program: Program, what: str) -> None:
    """The disk fills up at one point of the step, so the next write fails."""
    done = program.build(OBUILD_FAKE_FULL=what)
    assert done.returncode == 1, done.stdout
    assert "No space left on device" in done.stderr or "database or disk is full" in done.stderr
    assert "obuild prune" in done.stderr
    (program.root.parent / "filler").unlink()
    store = Store(program.root)
    assert list(fsck.check(store, read_data=True)) == []
    done = program.build()
    assert done.returncode == 0, done.stderr
    assert program.run("ls").returncode == 0
    assert list(fsck.check(store, read_data=True)) == []


def test_a_download_that_fills_the_disk_leaves_nothing_and_damages_nothing(
    program: Program, tmp_path: Path
) -> None:
    """The disk has no room for a cloud image. Once it has, the image is downloaded, and found to be no disk."""
    data = bytes(range(256)) * (6 << 12)
    (tmp_path / "image").write_bytes(data)
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        'kind = "cloud"\nsize = "64M"\n[card]\nlogin = "me"\n[cloud]\nuser-data = "#cloud-config"\n[cloud.image]\n'
        f'url = "{(tmp_path / "image").as_uri()}"\ndigest = "sha256:{hashlib.sha256(data).hexdigest()}"\n'
    )
    filler = program.fill(2 << 20)
    done = program.run("base", "make", recipe)
    assert done.returncode == 1, done.stderr
    assert "No space left on device" in done.stderr
    assert "obuild prune" in done.stderr
    store = Store(program.root)
    assert list(store.downloads.names()) == []
    assert [path.name for path in store.base_image.iterdir() if "mine" in path.name] == []
    assert list(fsck.check(store, read_data=True)) == []
    filler.unlink()
    done = program.run("base", "make", recipe)
    assert done.returncode == 2, done.stderr
    assert "no boot sector" in done.stderr
    assert len(list(store.downloads.names())) == 1


def test_a_store_on_a_full_disk_can_be_read_and_cleaned(program: Program) -> None:
    assert program.build().returncode == 0
    program.fill(0)
    done = program.run("ls")  # the index needs a little space to be opened
    assert done.returncode == 0 or "obuild prune --keep-bytes" in done.stderr
    for command in (["df"], ["prune", "--dry-run", "--keep-bytes=0"], ["prune", "--keep-bytes=0"]):
        done = program.run(*command)
        assert done.returncode == 0, done.stderr
    (program.root.parent / "filler").unlink()
    assert program.build().returncode == 0
    assert list(fsck.check(Store(program.root), read_data=True)) == []


def test_a_reserve_is_freed_before_a_step_by_removing_unused_items(program: Program) -> None:
    assert program.build().returncode == 0
    first = {layer.id for layer in Store(program.root).layers()}
    program.spec.write_text(SPEC.replace("one", "another"))
    filler = program.fill(1 << 20)
    done = program.build("--reserve=1200K")
    assert done.returncode == 0, done.stdout + done.stderr
    assert first - {layer.id for layer in Store(program.root).layers()}
    filler.unlink()
    done = program.build("--reserve=1T")
    assert done.returncode == 0, "all is there: no room is needed"
    program.spec.write_text(SPEC.replace("one", "third"))
    done = program.build("--reserve=1T")
    assert done.returncode == 1
    assert "in the store: layers" in done.stderr
    assert list(fsck.check(Store(program.root), read_data=True)) == []
