"""The `obuild` program with scripted machines: everything is real but the guests.

A command writes a random word to the disk's overlay, adds a file to each of its caches, and prints its text.
"""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path

import obuild.executors.qemu
import obuild.flat
from obuild.cli import run
from obuild.guests import Guest
from obuild.shape import Shape
from tests.fakes import FakeExecutor, Run


def act(step: Run) -> int:
    """What every command does."""
    step.output(f"{step.command.argv[-1]}\n".encode())
    pattern = f"write -P {1 + os.urandom(1)[0] % 255} 64k 4k"
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", pattern, step.draft.image], check=True, capture_output=True)
    for copy in step.copies:
        new = copy.path.with_suffix(".new")
        if copy.path.exists():
            new.write_bytes(copy.path.read_bytes())
        with tarfile.open(new, "a") as archive:
            archive.addfile(tarfile.TarInfo(f"./{step.draft.id[:6]}"))
        copy.save(new)
    return 1 if step.command.argv[-1].startswith("fail") else 0


class Always(dict[str, object]):
    """A script that has the same for every command."""

    def get(self, key: str, default: object = None) -> object:
        return act


def machines(shape: Shape, login: str, key: Path, guest: Guest) -> FakeExecutor:
    """In place of QEMU."""
    return FakeExecutor(Always(), files={"out": b"x"})  # type: ignore[arg-type]


if __name__ == "__main__":
    obuild.flat.LONGEST = 3  # so that even a short chain is flattened
    obuild.executors.qemu.Qemu = machines  # type: ignore[assignment,misc]
    run()
