"""Pack files for a copy from a build with the guest's tar: GNU tar, or bsdtar on FreeBSD and Windows."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass

from obuild.guests.posix import script


@dataclass(frozen=True, slots=True)
class Packing:
    """A root shell's script that packs files into a tar archive.

    The archive is its stdout; or, if `file` is not empty, it is at that path, for scp, until the script `remove`
    runs.
    """

    script: bytes
    file: str = ""
    remove: bytes = b""


def split(path: str) -> tuple[str, str]:
    """The absolute folder of a file, and its name there; `.` stands for the content of the folder."""
    folder, _, name = ("/" + path.lstrip("/")).rstrip("/").rpartition("/")
    return folder or "/", name or "."


def names(exclude: Iterable[str]) -> tuple[str, ...]:
    """The names that a file can have: tar would take others for paths."""
    return tuple(name for name in exclude if name not in ("", ".", "..") and "/" not in name)


def by_gnu_tar(
    tar: Iterable[str], src: Iterable[str], *, exclude: Iterable[str], rename: str | None, owner: tuple[int, int]
) -> Packing:
    """Pack with GNU tar, sorted by name, sparse files with holes. No name is taken for a pattern or unescaped."""
    uid, gid = owner
    words = [
        *(*tar, "--create", "--file=-", "--format=gnu", "--sparse", "--sort=name", "--no-unquote"),
        *(f"--owner=u:{uid}", f"--group=g:{gid}", "--numeric-owner"),  # a bare number may also be a name
        *("--no-wildcards", "--no-anchored", *(f"--exclude={name}" for name in names(exclude))),
    ]
    places = []
    for path in src:
        folder, name = split(path)
        # the path to the folder may have symlinks: they lead to the guest's own files, so this is safe
        places += ["-C", folder, f"./{name}" if name != "." else name]
    if rename is not None:
        words.append(f"--transform=flags=rhS;s/^{_pattern(name)}/{_replacement(rename)}/")
    else:
        words.append(r"--transform=flags=rhS;s/^\.\/\(.\)/\1/")
    # treat names as bytes, so that any name can be changed
    return Packing(script(["LC_ALL=C; export LC_ALL", f"exec {shlex.join([*words, *places])}"]))


def _pattern(name: str) -> str:
    """A basic regular expression that matches `./name`, or the folder `.` itself."""
    quoted = "".join("\\" + letter if letter in r"\.*[]^$" else letter for letter in name)
    return quoted if name == "." else r"\.\/" + quoted


def _replacement(name: str) -> str:
    return "".join("\\" + letter if letter in r"\&" else letter for letter in name)


def bsdtar_options(owner: tuple[int, int]) -> list[str]:
    """The options of FreeBSD's and Windows' tar for every archive.

    Of its formats only pax keeps sparse files sparse. What is not in a manifest (access control lists, extended
    attributes, file flags) is left out.
    """
    uid, gid = owner
    return [
        *("--format", "pax", "--no-acls", "--no-xattrs", "--no-fflags"),
        *("--uid", str(uid), "--gid", str(gid), "--numeric-owner"),
    ]
