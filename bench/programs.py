"""What bench.steps builds with: programs, their stores, and the files that specs copy."""

from __future__ import annotations

import os
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from bench.overhead import KEPT
from bench.results import WAYS
from bench.watch import Build, watch
from obuild.bases import catalog, making
from obuild.store.base_images import MADE
from obuild.store.layers import Store

FILES = 1000
FILE_SIZE = 20_000


@dataclass(frozen=True, slots=True)
class Program:
    """A program that builds specs. Its own `options` come right before the source folder."""

    argv: tuple[str, ...]
    options: tuple[str, ...]
    folder: Path

    def build(self, store: Path, stage: str) -> Build:
        """Write the spec, and build it with the files of `make_sources` beside it. Raises Failed."""
        spec = self.folder / "spec"
        spec.write_text(stage)
        args: list[str | Path] = ["build", f"--store=qemu:{store}", "-f", spec, *self.options, self.folder / "src"]
        return watch([*self.argv, *args], events="json" in self.options)


def find_programs(obuild: str, peer: str, folder: Path) -> dict[str, Program]:
    """Return the ways to build here, in the order of WAYS. An obuild without `--vm` has only one, cold."""
    argv = tuple(shlex.split(obuild))
    told = ("--progress", "json")
    if b"--vm" in subprocess.run([*argv, "build", "--help"], stdout=subprocess.PIPE, check=True).stdout:
        modes: dict[str, tuple[str, ...]] = {
            "cold": ("--vm", "boot"),
            "first": ("--vm", "warm"),
            "warm": ("--vm", "warm"),
        }
    else:
        modes = {"cold": ()}
    found = {way: Program(argv, told + options, folder) for way, options in modes.items()}
    if peer:
        found["peer"] = Program(tuple(shlex.split(peer)), (), folder)
    return {way: found[way] for way in WAYS if way in found}


def make_sources(folder: Path) -> None:
    """Make FILES incompressible files in src/files."""
    (folder / "src/files").mkdir(parents=True)
    for number in range(FILES):
        (folder / "src/files" / str(number)).write_bytes(os.urandom(FILE_SIZE))


def copy(source: Path, dest: Path) -> None:
    """Copy a file or folder, and wait until it is on disk: else a build would have to."""
    subprocess.run(["cp", "-a", "--reflink=auto", source, dest], check=True)
    os.sync()


def copy_images(source: Path, name: str, dest: Path) -> None:
    """Make a store with one base image of another store, and its login keys.

    Without the record of its recipe: that of another checkout would be read again by each build.
    """
    Store.open(dest)
    for path in [*(source / "base-image").glob(f"{name}.*"), source / "state/ssh"]:
        if path.suffix != MADE:
            copy(path, dest / path.parent.name)


def images_of(name: str, stores: list[Path]) -> Path:
    """Return the store that has this base image; if none has, the benchmarks' own, where it is made."""
    for root in stores:
        if catalog.image_path(Store(root), name):
            return root
    making.find(Store.open(KEPT), name, say=print)
    return KEPT
