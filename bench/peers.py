"""What else makes images on a host, for comparison: a chroot in a mounted disk, and buildah."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from obuild.host import qemu_img
from obuild.host.blocks import raw_file
from obuild.host.trees import root as trees


class Peers:
    """They have the root file system of one image. `folder` has a store of obuild, and the sources in src."""

    def __init__(self, folder: Path, image: Path) -> None:
        self.folder, self.disk, self.top = folder, folder / "disk.raw", folder / "top"
        qemu_img.unpack(image, self.disk)

    def mount(self, disk: Path) -> None:
        """Mount the root of a raw disk at `top`."""
        with raw_file(disk) as blocks:
            start = trees.layout(blocks).root.start
        self.top.mkdir(exist_ok=True)
        subprocess.run(["mount", "-o", f"loop,offset={start}", disk, self.top], check=True)

    def in_chroot(self, command: str, caches: dict[str, str]) -> float:
        """Run a command in a chroot; the content of each of these caches of the store is at its path."""
        copy, top = self.folder / "copy.raw", self.top
        subprocess.run(["cp", "--sparse=always", self.disk, copy], check=True)
        self.mount(copy)
        try:
            for name, place in caches.items():
                archive = self.folder / f"store/cache/c-{name}/cache.tar"
                (top / place).mkdir(exist_ok=True)
                subprocess.run(["tar", "-xf", archive, "-C", top / place], check=True)
            policy = top / "usr/sbin/policy-rc.d"
            policy.write_text("#!/bin/sh\nexit 101\n")
            policy.chmod(0o755)
            os.sync()
            started = time.perf_counter()
            subprocess.run(["chroot", top, "sh", "-c", command], check=True, stderr=subprocess.DEVNULL)
        finally:
            subprocess.run(["umount", top], check=True)
        seconds = time.perf_counter() - started
        copy.unlink()
        return seconds

    @contextmanager
    def buildah(self) -> Iterator[Callable[[str], float]]:
        """Builds by buildah, on the same root, in a storage of its own."""
        argv: list[str | Path] = ["buildah", "--root", self.folder / "images", "--runroot", self.folder / "run"]
        self.mount(self.disk)
        try:
            (self.folder / "Containerfile").write_text("FROM scratch\nCOPY . /\n")
            self._bud(argv, "obuild-bench", self.top)
        finally:
            subprocess.run(["umount", self.top], check=True)

        def build(lines: str) -> float:
            (self.folder / "Containerfile").write_text(f"FROM obuild-bench\n{lines}")
            started = time.perf_counter()
            self._bud(argv, "built", self.folder / "src")
            return time.perf_counter() - started

        try:
            yield build
        finally:
            for command in (["rm", "--all"], ["rmi", "--all", "--force"]):  # nothing stays mounted
                subprocess.run([*argv, *command], stdout=subprocess.DEVNULL)

    def _bud(self, argv: list[str | Path], tag: str, context: Path) -> None:
        options = ["--runtime=runc", "--layers", "--quiet", "--network=none", "--pull=never", "-t", tag]
        file: list[str | Path] = ["-f", self.folder / "Containerfile", context]
        subprocess.run([*argv, "bud", *options, *file], check=True, stdout=subprocess.DEVNULL)
