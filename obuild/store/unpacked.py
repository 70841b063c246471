"""Caches as folders, for steps that run on this host: their next use unpacks nothing.

STORE/cache/c-NAME/cache.unpacked/{tree, about.json}: `tree` has what the archive beside it has, and about.json
says which archive that is. One step at a time has the folder: it is renamed into the step's copy of the cache, and
back when the step saves the cache. A second step meanwhile unpacks the archive for itself, so nobody sees a tree
that another one changes. The tree of a step that was killed is removed with its copy of the cache.

The files are a guest's, with any owner and any mode, so only root can enter the folder. Nothing flushes them to
the disk: a tree no longer counts when the host has booted again.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from obuild.host import stamp
from obuild.host.fs import discard
from obuild.host.regular import is_folder

_SUFFIX = ".unpacked"
_ABOUT = "about.json"


class State(NamedTuple):
    """A value that changes when anything in a tree does, and the tree's size on disk in bytes."""

    digest: str
    size: int


def folder_of(archive: Path) -> Path:
    """The folder beside an archive."""
    return archive.with_suffix(_SUFFIX)


def tree_of(archive: Path) -> Path:
    """The files in that folder."""
    return folder_of(archive) / "tree"


def make(archive: Path) -> Path:
    """Make an empty tree beside an archive, in place of any that is there."""
    folder = folder_of(archive)
    discard(folder)
    folder.mkdir(0o700)
    tree = tree_of(archive)
    tree.mkdir(0o755)
    return tree


def state_of(folder: Path, archive: Path) -> State | None:
    """The state of the tree in `folder` if it has what `archive` has; else None."""
    try:
        told = json.loads((folder / _ABOUT).read_bytes())
        right = told["archive"] == list(stamp.of(archive)) and told["boot"] == stamp.boot_id()
        return State(str(told["digest"]), int(told["size"])) if right else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_outdated(archive: Path) -> bool:
    """Whether there is a folder beside an archive that no step would take, and we may look into it."""
    folder = folder_of(archive)
    return is_folder(folder) and os.access(folder, os.W_OK | os.X_OK) and state_of(folder, archive) is None


def size_of(archive: Path) -> int:
    """The size on disk of the tree beside an archive, in bytes; 0 if no step would take it, or we cannot look."""
    state = state_of(folder_of(archive), archive)
    return state.size if state else 0


def label(folder: Path, archive: Path, state: State) -> None:
    """Note that the tree in `folder`, in this state, has what `archive` has, under any name."""
    known = {"archive": stamp.of(archive), "boot": stamp.boot_id(), **state._asdict()}
    (folder / _ABOUT).write_text(json.dumps(known))


def take(master: Path, copy: Path) -> State | None:
    """Move a cache's tree to a step's copy of its archive. The caller holds the cache.

    None if there is none with what the copy has. From here on it may change, so it has no label.
    """
    folder = folder_of(copy)
    if state_of(folder, copy) is None and state_of(folder_of(master), copy) is not None:
        discard(folder)
        with suppress(OSError):  # the store came with a container image, where folders cannot be renamed
            folder_of(master).rename(folder)
    state = state_of(folder, copy)
    (folder / _ABOUT).unlink(missing_ok=True)
    return state


def bring_back(copy: Path, master: Path) -> None:
    """Move the tree of a step's copy to the cache, if it has what the cache has now. The caller holds the cache.

    One that the cache does not have any more goes to the copy, to be removed with it.
    """
    ours, theirs = folder_of(copy), folder_of(master)
    if state_of(theirs, master) is not None:
        return
    with suppress(OSError):  # there is none, or it is root's and we are not
        theirs.rename(copy.with_suffix(".old"))
    if state_of(ours, master) is not None:
        with suppress(OSError):  # the old one could not be moved
            ours.rename(theirs)


def look(tree: Path) -> State | None:
    """The state of a tree that nobody changes now; None if it is too deep to look at.

    A change also changes the time of a file's inode, which no guest can set. The kernel counts it in steps of up
    to 10 ms, and starting a container takes longer. That of a folder does not count: apt sets the owners of its
    folders each time, and what an archive has of a folder is its names, mode, owner and time.
    """
    digest = hashlib.sha256()
    size = 0
    try:
        root = os.fsencode(tree)
        folders = [root]
        top = os.lstat(root)
        digest.update(struct.pack("<3Qq", top.st_mode, top.st_uid, top.st_gid, top.st_mtime_ns))
        while folders:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    it = entry.stat(follow_symlinks=False)
                    folder = entry.is_dir(follow_symlinks=False)
                    ids = it.st_ino, it.st_mode, it.st_uid, it.st_gid, it.st_size
                    digest.update(struct.pack("<5Qqq", *ids, it.st_mtime_ns, 0 if folder else it.st_ctime_ns))
                    digest.update(entry.path[len(root) :] + b"\0")
                    size += it.st_blocks * 512
                    if folder:
                        folders.append(entry.path)
    except OSError:
        return None
    return State(digest.hexdigest(), size)
