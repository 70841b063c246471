"""What making an image from packages needs of this host."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives up rights")
def test_root_without_the_right_to_mount_is_told_so(tmp_path: Path) -> None:
    """As in a container that is not privileged."""
    without = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    make = [sys.executable, "-m", "obuild", "base", "make", "micro", f"--store=qemu:{tmp_path}/store"]
    done = subprocess.run([*without, *make], capture_output=True, text=True)
    assert done.returncode == 2
    assert "takes the right to mount, and we lack it\nhint: start the container with --privileged" in done.stderr
    assert not list((tmp_path / "store/base-image").glob("micro*"))
