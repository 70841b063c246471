"""The files that a recipe copies into a new root: folders beside the recipe, and files from its text.

Both become tar archives in which everything belongs to root. The script in `mmdebstrap_hook` unpacks them.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from obuild.bases.kind import File
from obuild.bases.sources import Sources
from obuild.bases.table import Table
from obuild.errors import UsageError
from obuild.plan import archive, tree
from obuild.plan.tree import Entry, Tree

#: sshd's host key. It is not in the image: each store writes one into its copy.
HOST_KEY = "/etc/ssh/ssh_host_ed25519_key"

#: Folders of the root that are mount points in a machine, or are emptied before the disk is made.
NOT_KEPT = ("dev", "proc", "run", "sys", "tmp")


def trees(table: Table, sources: Sources, files: Iterable[File]) -> tuple[Tree, ...]:
    """The folders that `tree` names. UsageError for what cannot be in an image beside `files`, with its path."""
    found = []
    for folder in sources.folders(table, "tree"):
        try:
            one = tree.walk(folder, ["."])
        except UsageError as error:
            raise table.error("tree", f"tree {folder}: {error.message}") from None
        for entry in one.entries:
            if why := _refused(entry):
                raise table.error("tree", f"tree {folder}: {entry.path!r} {why}")
            sources.files.append(folder / entry.source)
        found.append(one)
    _see_kinds_agree(table, found, files)
    return tuple(found)


def _refused(entry: Entry) -> str:
    """Why an entry cannot be in an image; "" if it can."""
    path = PurePosixPath(entry.path)
    if not entry.path.isprintable():
        return "has a character in its name that is not printable"
    if path.parts[0] in NOT_KEPT and (entry.kind != "dir" or len(path.parts) > 1):
        return f"would not be in the image: /{path.parts[0]} is empty there"
    if entry.kind == "symlink" and not entry.content.startswith("/"):
        depth = len(path.parts) - 1
        for part in entry.content.split("/"):
            depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
            if depth < 0:
                return f"is a link that leaves the tree: {entry.content}"
    return ""


def _see_kinds_agree(table: Table, found: Iterable[Tree], files: Iterable[File]) -> None:
    """Of two files in one place the later wins; but a folder cannot replace a file, nor a file a folder."""
    folders = set(folders_of(files, found))
    others = [entry.path for one in found for entry in one.entries if entry.kind != "dir"]
    for path in (*others, *(file.path.strip("/") for file in files)):
        if path in folders:
            raise table.error("tree", f"/{path} cannot be both a file and a folder")


def globs(table: Table) -> tuple[str, ...]:
    """The patterns under `remove`. UsageError for one that is not an absolute path inside the root."""
    for pattern in (patterns := table.strings("remove")):
        parts = pattern.split("/")
        inside = pattern.startswith("/") and all(part not in ("", ".", "..") for part in parts[1:])
        if not inside or not pattern.isprintable():
            hint = 'write it like "/usr/share/doc/*": absolute, and without .. in it'
            raise table.error("remove", f"remove: {pattern!r} is not a path in the new root", hint=hint)
    return patterns


def regex(pattern: str) -> str:
    """A pattern as an extended regular expression: *, ? and [...] match no slash, ** matches slashes too."""
    parts = re.split(r"(\*\*|\*|\?|\[[^]/]+\])", pattern)
    known = {"**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        known.get(part)
        or (re.sub(r"^\[!", "[^", part) if index % 2 else re.sub(r"([][\\.^$*+?(){}|])", r"\\\1", part))
        for index, part in enumerate(parts)
    )


def folders_of(files: Iterable[File], trees: Iterable[Tree]) -> list[str]:
    """Every folder that is written to, parents first, as a path relative to the root."""
    paths = [file.path.strip("/") for file in files] + [entry.path for one in trees for entry in one.entries]
    parents = {str(parent) for path in paths for parent in PurePosixPath(path).parents}
    folders = {entry.path for one in trees for entry in one.entries if entry.kind == "dir"}
    return sorted((parents | folders) - {"."})


def write_tree(one: Tree, path: Path) -> None:
    """Write a tree as a tar archive. ObuildError if a file has changed since the recipe was read."""
    with path.open("wb") as file:
        archive.send(one, file, uid=0, gid=0)


def write_files(files: Iterable[File], path: Path) -> None:
    """Write `files` as a tar archive. It has no folders, so those that exist keep their modes."""
    with tarfile.open(path, mode="w") as tar:
        for file in files:
            data = file.text.encode()
            entry = tarfile.TarInfo(file.path.lstrip("/"))
            entry.mode, entry.size = file.mode, len(data)
            tar.addfile(entry, io.BytesIO(data))
