"""The `obuild` program with scripted machines: everything but the guests is real.

A command writes a random word to the disk's overlay, adds a file to each of its caches, and prints its text.
"""

from __future__ import annotations

import errno
import os
import sys
import tarfile
from contextlib import suppress
from pathlib import Path

import obuild.store.flatten
from obuild.__main__ import main
from obuild.errors import MachineError, ProcessError
from obuild.executors.all import EXECUTORS
from obuild.host import failpoints, process
from tests.support.fakes import FakeExecutor, Run, ScriptedGuests

#: The points at which the file system of the store is made full, once; those of `failpoints` also work.
FULL = [point for point in [os.environ.get("OBUILD_FAKE_FULL", "")] if point]


def fill(folder: Path) -> None:
    """Fill a small file system with a file of this name."""
    with (folder / "filler").open("ab", buffering=0) as file, suppress(OSError):
        for size in (1 << 20, 1 << 12):
            with suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass


def full_at(point: str) -> None:
    """Fill the file system, if it is to happen at this point."""
    if point in FULL:
        FULL.clear()
        fill(Path(sys.argv[-1].partition(":")[2]).parent)


def act(step: Run) -> int:
    """The script of every command."""
    full_at("output")
    step.output(f"{step.command.argv[-1]}\n".encode(errors="surrogateescape") * (100_000 if FULL else 1))
    full_at("image")
    pattern = f"write -P {1 + os.urandom(1)[0] % 255} 64k 512k"
    try:
        process.run(["qemu-io", "-f", "qcow2", "-c", pattern, step.draft.image])
    except ProcessError as error:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error  # like QEMU's event
    full_at("cache")
    for cache, old in zip(step.command.caches, step.caches, strict=True):
        new = step.new(old)
        if old.exists():
            new.write_bytes(old.read_bytes())
        try:
            with tarfile.open(new, "a") as archive:
                archive.addfile(tarfile.TarInfo(f"./{step.draft.id[:6]}"))
        except tarfile.TarError as error:
            raise MachineError(f"unpacking cache {cache.name}: {error}") from error
    return 1 if step.command.argv[-1].startswith("fail") else 0


class Always(dict[str, object]):
    """A script with the same action for every command."""

    def get(self, key: str, default: object = None) -> object:
        return act


def guests() -> ScriptedGuests:
    """Scripted guests, in place of real ones."""
    return ScriptedGuests(FakeExecutor(Always(), files={"out": b"x"}))  # type: ignore[arg-type]


if __name__ == "__main__":
    if FULL:
        failpoints.reach = full_at
    obuild.store.flatten.LONGEST = 3  # so that even a short chain is flattened
    EXECUTORS["qemu"] = EXECUTORS["other"] = guests()
    main()
