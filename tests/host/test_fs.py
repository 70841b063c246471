"""Removing folders."""

from __future__ import annotations

import os
from pathlib import Path

from obuild.host.fs import discard
from obuild.store import usage


def test_a_folder_of_any_depth_is_counted_and_removed(tmp_path: Path) -> None:
    """A guest may have made it. Python's own functions fail here, for want of descriptors or of stack."""
    top = tmp_path / "top"
    top.mkdir()
    folder = os.open(top, os.O_RDONLY)
    for _ in range(1100):
        os.mkdir("d", dir_fd=folder)
        below = os.open("d", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    os.close(folder)
    assert usage.on_disk(top) > 0
    discard(top)
    assert not top.exists()
