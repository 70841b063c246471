"""Saved machines made without a guest, and ways to damage them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from obuild.plan.keys import LayerId
from obuild.store.warm import Warm

MACHINE = "QEMU 7.2, 2 CPUs"


RAM = 200_000


PLENTY = 1 << 30


def save(states: Warm, id: LayerId, *, ram: Path | None = None, machine: str = MACHINE, size: int = RAM) -> bool:
    """Save a machine, with its own memory or that of another one."""
    with states.folder("test") as folder:
        made = folder / "made"
        made.mkdir()
        if ram:
            (made / "ram").hardlink_to(ram)
        else:
            (made / "ram").write_bytes(os.urandom(size))
        (made / "device").write_bytes(b"device")
        (made / "delta").write_bytes(b"delta")
        kept = states.keep(id, machine, made)
        assert not made.exists()
        return kept


def writable(path: Path) -> Path:
    path.chmod(0o600)
    return path


def longer(state: Path) -> None:
    with writable(state / "ram").open("ab") as file:
        file.write(b"x")


def flipped(name: str) -> Callable[[Path], None]:
    """Change the content, and nothing else."""

    def act(state: Path) -> None:
        path, status = writable(state / name), (state / name).stat()
        path.write_bytes(path.read_bytes()[::-1])
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    return act
