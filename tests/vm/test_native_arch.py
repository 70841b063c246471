"""Native steps on images for other architectures: qemu-user runs their programs (`make test-arch`)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from obuild.executors.native.requirements import BINFMT
from obuild.executors.qemu.arches import ARCHES
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
