"""Native steps on images for other architectures: qemu-user runs their programs (`make test-arch`)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from obuild.bases.scratch import apt
from obuild.executors.native.requirements import BINFMT
from obuild.executors.qemu.arches import ARCHES
from obuild.guests.profile import DEBIAN_ARCHES
from obuild.store.layers import Store
from tests.support.disks import ext4_disk
from tests.support.program import Program, assert_clean, base_images, new_store

pytestmark = [
    pytest.mark.vm,
    pytest.mark.arch,
    pytest.mark.skipif(os.geteuid() != 0, reason="native steps need root"),
]

FOREIGN = [arch for arch in ARCHES if arch != os.uname().machine]


@pytest.fixture(params=FOREIGN)
def arch(request: pytest.FixtureRequest) -> Iterator[str]:
    """An architecture whose programs run here; unless they do anyhow, only during the test."""
    name: str = request.param
    mounted = (BINFMT / "register").exists()
    if not mounted:
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", BINFMT], check=True)
    entry = BINFMT / f"qemu-{name}"
    ours = not entry.exists()
    try:
        if ours:
            (BINFMT / "register").write_bytes(Path(f"/usr/lib/binfmt.d/qemu-{name}.conf").read_bytes())
        yield name
    finally:
        with suppress(FileNotFoundError):
            if ours:
                entry.write_text("-1")
        if not mounted:
            subprocess.run(["umount", BINFMT], check=True)


def test_its_programs_run(arch: str, spec: Callable[[str], Path], source: Path, tmp_path: Path) -> None:
    (source / "file").write_text("copied")
    program = Program(new_store(tmp_path / "store", base_images(f"micro-{arch}")), "native")
    text = (
        f"((from micro-{arch})"
        " (copy (src file) (dst /copied))"
        " (user (uid 12) (gid 34))"
        ' (run (cache (c (target /c))) (shell "uname -m; id -u; cat /copied; echo >/c/made")))'
    )
    out = program.build(spec(text), source).stdout
    assert f"\n{arch}\n12\ncopied" in out
    assert_clean(program)
    # Without qemu-user, the next step is refused, and nothing is made.
    (BINFMT / f"qemu-{arch}").write_text("0")
    try:
        done = program.build(spec(text[:-1] + ' (run (shell "true")))'), source, code=2)
    finally:
        (BINFMT / f"qemu-{arch}").write_text("1")
    assert f"programs for {arch} do not run on this host" in done.stderr
    assert "apt install qemu-user-static; --store=qemu" in done.stderr


def test_the_smallest_tree_runs_a_command(
    arch: str, spec: Callable[[str], Path], source: Path, tmp_path: Path
) -> None:
    """Nothing but Debian's busybox, which is one program."""
    sources = apt.lines(apt.MIRROR, "trixie", updates=False)
    archive = apt.Apt(tmp_path / "apt", DEBIAN_ARCHES.get(arch, arch), sources)
    archive.update()
    (package,) = archive.download(["busybox-static"])
    subprocess.run(["dpkg-deb", "--extract", package, tmp_path / "tree"], check=True)
    busybox = next((tmp_path / "tree").glob("**/bin/busybox"))
    files = ("mkdir bin", f"write {busybox} bin/sh", "sif /bin/sh mode 0100755", "mkdir etc")
    disk = ext4_disk(tmp_path / "tiny.img", *files)
    program = Program(Store.open(tmp_path / "store").root, "native")
    program("base", "add", disk, "--name", "tiny", f"--arch={arch}")
    out = program.build(spec('((from tiny) (shell sh -c) (run (shell "true")) (run (shell "uname -m")))'), source)
    assert f"\n{arch}\n" in out.stdout
    assert_clean(program)
