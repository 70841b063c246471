"""Warm machines: one that has booted, or has finished a step, is saved for the layer that its disk is based on.

The next step on that layer resumes it instead of booting. That is all a state is for: it may vanish at any time,
and builds go on without it. So it is never synced to the disk, and it is valid only until the host reboots. It
belongs to one layer, as that was made, and to one QEMU and machine, which a text describes: if the text differs,
the step boots.

STORE/warm/ID/ holds `ram`, `device`, perhaps `delta` and `disk.qcow2`, and about.json, which describes them.
Several states may share one `ram` file: its size is divided equally among them.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from obuild.errors import ObuildError, words
from obuild.host import failpoints, locks, stamp
from obuild.host.fs import discard, owned_folder
from obuild.host.regular import NotAFile, is_file, read_text
from obuild.plan.keys import LayerId
from obuild.store import mtree, usage
from obuild.store.layers import Store
from obuild.store.saved import ABOUT, MODE

#: The version of about.json and the files beside it.
FORMAT = 1

#: The required files of a state, the optional ones, and those small enough to be read completely before use.
_NEEDED = ("ram", "device")
_FILES = (*_NEEDED, "delta", "disk.qcow2")
_HASHED = ("device", "delta")

#: The fields of about.json, and their types.
_KEYS = {"boot": str, "machine": str, "layer": list, "files": dict, "sha256": dict}


@dataclass(frozen=True, slots=True)
class State:
    """A saved machine. `delta` and `disk` are optional."""

    path: Path

    @property
    def ram(self) -> Path:
        return self.path / "ram"

    @property
    def device(self) -> Path:
        return self.path / "device"

    @property
    def delta(self) -> Path:
        return self.path / "delta"

    @property
    def disk(self) -> Path:
        return self.path / "disk.qcow2"

    def about(self) -> dict[str, Any]:
        """The content of about.json. ValueError, with the reason, if it cannot be read."""
        try:
            about = json.loads(read_text(self.path / ABOUT))
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"its {ABOUT} cannot be read") from error
        if not isinstance(about, dict) or "format" not in about:
            raise ValueError(f"its {ABOUT} is damaged")
        if about["format"] != FORMAT:
            raise ValueError("it was saved by another version of obuild")
        if not about.keys() >= _KEYS.keys() or not all(isinstance(about[key], _KEYS[key]) for key in _KEYS):
            raise ValueError(f"its {ABOUT} is damaged")
        return about


@dataclass(frozen=True, slots=True)
class Warm:
    """The saved machines of a store, for builds.

    Together they may take `budget` bytes on disk, but at most half of the free space; with 0, none is saved or
    used. `note` gets one line for each machine that cannot be used or saved, with the reason.
    """

    store: Store
    budget: int
    note: Callable[[str], object] = lambda text: None

    @contextmanager
    def use(self, layer: LayerId, machine: str) -> Iterator[State | None]:
        """The state of a layer, protected from removal; None if there is none that `machine` can resume.

        `machine` is everything that must be the same to resume it: the QEMU, its command line, the host's CPU. The
        caller has the layer in use. A state that has become useless is removed. Only the block raises.
        """
        with ExitStack() as held:
            yield self._take(layer, machine, held) if self.budget else None

    def folder(self, name: str) -> AbstractContextManager[Path]:
        """A new folder for a running machine, removed when the block ends. OSError if it cannot be made."""
        running = self.store.states.running
        running.mkdir(MODE, exist_ok=True)
        return owned_folder(running, name, mode=MODE)

    @contextmanager
    def boots(self, layer: LayerId) -> Iterator[None]:
        """Take the lock to boot a layer and save the machine; after waiting for it, look for a state again.

        In the block, do not wait for a claim or for another such lock. OSError if the lock cannot be made.
        """
        with locks.file_lock(self.store.locks / f"warm-{layer}.lock"):
            yield

    def keep(self, layer: LayerId, machine: str, made: Path) -> bool:
        """Make the files in the folder `made` the state of a layer, replacing an older one; returns if it did.

        The caller has the layer in use, and `made` is inside a `folder`; it is removed in any case. Nothing is
        kept if it alone exceeds the budget, or if the older state is in use. The least recently used states are
        removed until all fit into the budget; those in use stay.
        """
        kept = False
        try:
            kept = self.budget > 0 and self._place(layer, machine, made)
        except (OSError, ObuildError) as error:
            self.note(f"the machine of layer {layer[:12]} could not be saved ({words(error)})")
        with suppress(OSError, ObuildError):  # what cannot be removed now will be later
            if kept:
                self._evict(layer)
            else:
                discard(made)
        return kept

    def drop(self, layer: LayerId) -> bool:
        """Remove the useless state of a layer; False if it is in use, perhaps by the caller."""
        try:
            return self.store.states.remove(layer)
        except (OSError, ObuildError):
            return False

    def _take(self, layer: LayerId, machine: str, held: ExitStack) -> State | None:
        state = State(self.store.states.folder / layer)
        try:
            if not held.enter_context(locks.folder_lock(state.path, shared=True)):
                return None
            why = self._unusable(state, layer, machine)
            if not why:
                os.utime(state.path)  # its last use
                return state
        except (OSError, ValueError) as error:
            why = words(error)
        held.close()
        self.note(f"the saved machine of layer {layer[:12]} cannot be used ({why}); booting")
        self.drop(layer)
        return None

    def _unusable(self, state: State, layer: LayerId, machine: str) -> str:
        if why := outdated(self.store, layer):
            return why
        if state.about()["machine"] != machine:
            return "it was saved by another QEMU or obuild, or has another size"
        return damage(state, read_data=True)

    def _place(self, layer: LayerId, machine: str, made: Path) -> bool:
        """Put a state in place, if it is small enough and no other is there."""
        (made / ABOUT).write_text(json.dumps(_about(self.store, layer, machine, made)))
        files = list(made.iterdir())
        for path in files:
            path.chmod(0o400)
        made.chmod(MODE)
        size = sum(path.stat().st_blocks * 512 for path in (made, *files))
        if size > self._limit(size):
            return False
        states = self.store.states
        states.folder.mkdir(MODE, exist_ok=True)
        failpoints.reach("warm.keeping")
        if not states.remove(layer):
            return False
        try:
            made.rename(states.folder / layer)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another process was faster
                return False
            raise
        failpoints.reach("warm.kept")
        return True

    def _limit(self, more: int = 0) -> int:
        """The limit for all states, in bytes: the budget, but at most half of what would be free without them.

        On a small disk the layers need the space. `more` is the size of a state that is not in place yet.
        """
        status = os.statvfs(self.store.root)
        free = status.f_bavail * status.f_frsize + usage.within(self.store.states.folder) + more
        return min(self.budget, free // 2)

    def _evict(self, spared: LayerId) -> None:
        """Remove the least recently used states until all fit into the budget."""
        states = self.store.states
        with locks.file_lock(self.store.locks / "warm.lock"):  # one at a time, or two would remove twice as many
            for id in sorted(states.ids(), key=lambda id: _used(states.folder / id)):
                if usage.within(states.folder) <= self._limit():
                    return
                if id != spared:
                    self.drop(
                        id
                    )  # it frees less than its size if another state shares its `ram`, so measure each time


def outdated(store: Store, layer: LayerId) -> str:
    """Why the state of a layer can never be resumed, in words; "" if it may be."""
    try:
        about = State(store.states.folder / layer).about()
        if about["boot"] != stamp.boot_id():
            return "the host has rebooted since"
        return "" if about["layer"] == store.layer(layer).stamp() else "its layer was removed and made again"
    except ValueError as error:
        return str(error)
    except OSError:
        return "its layer is gone"


def damage(state: State, *, read_data: bool = False) -> str:
    """How a state differs from what was saved, in words; "" if it does not. With `read_data`, read small files.

    States from before the host rebooted are not checked: data that was not synced may be lost.
    """
    try:
        about = state.about()
    except ValueError as error:
        return str(error)
    if about["boot"] != stamp.boot_id():
        return ""
    for path in (state.path / name for name in _FILES):
        try:
            if not path.exists() and (path.name in _NEEDED or path.name in about["files"]):
                return f"its {path.name} is missing"
            if not _same(path, about, read_data=read_data):
                return f"its {path.name} has changed"
        except OSError as error:
            return f"its {path.name} cannot be read: {error.strerror}"
    return ""


def _same(path: Path, about: dict[str, Any], *, read_data: bool) -> bool:
    """Whether a file of a state matches about.json. OSError if it cannot be read."""
    if not path.exists() or _times(path) != about["files"].get(path.name):
        return not path.exists() and path.name not in about["files"]
    return not read_data or path.name not in _HASHED or mtree.digest(path) == about["sha256"].get(path.name)


def _about(store: Store, layer: LayerId, machine: str, made: Path) -> dict[str, Any]:
    """The content of about.json for a state that is being saved."""
    there = [name for name in _FILES if name in _NEEDED or (made / name).exists()]
    return {
        "format": FORMAT,
        "boot": stamp.boot_id(),
        "machine": machine,
        "layer": store.layer(layer).stamp(),
        "files": {name: _times(made / name) for name in there},
        "sha256": {name: mtree.digest(made / name) for name in there if name in _HASHED},
    }


def _times(path: Path) -> list[int]:
    """A value that changes when a file is written to; the same for all its hard links. OSError if missing."""
    if not is_file(path) and os.path.lexists(path):
        raise NotAFile(path)
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _used(path: Path) -> float:
    """When a state was last used, in seconds since the epoch."""
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0
