"""How the tars of guests are told to pack files for a copy out of a build: GNU's, and FreeBSD's and Windows'."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass

from obuild.guests.posix import script


@dataclass(frozen=True, slots=True)
class Packing:
    """A root shell's script that packs files into a tar archive.

    The archive is its stdout; or, if `file` is not empty, what scp finds there until the script `remove` is run.
    """

    script: bytes
    file: str = ""
    remove: bytes = b""


def split(path: str) -> tuple[str, str]:
    """The folder of a file, from the root, and its name there; `.` stands for all that is in the folder."""
    folder, _, name = ("/" + path.lstrip("/")).rstrip("/").rpartition("/")
    return folder or "/", name or "."


def names(exclude: Iterable[str]) -> tuple[str, ...]:
    """Those of the names that a file can have: tars would take others for paths."""
    return tuple(name for name in exclude if name not in ("", ".", "..") and "/" not in name)


def by_gnu_tar(
    tar: Iterable[str], src: Iterable[str], *, exclude: Iterable[str], rename: str | None, owner: tuple[int, int]
) -> Packing:
    """Pack by GNU tar, sparse files sparse, in the order of names. No word of it is a pattern or has escapes."""
    uid, gid = owner
    words = [
        *(*tar, "--create", "--file=-", "--format=gnu", "--sparse", "--sort=name", "--no-unquote"),
        *(f"--owner=u:{uid}", f"--group=g:{gid}", "--numeric-owner"),  # a bare number may be a name, too
        *("--no-wildcards", "--no-anchored", *(f"--exclude={name}" for name in names(exclude))),
    ]
    places = []
    for path in src:
        folder, name = split(path)
        # the folder may be reached through symlinks: to the guest's own files, so no harm
        places += ["-C", folder, f"./{name}" if name != "." else name]
    if rename is not None:
        words.append(f"--transform=flags=rhS;s/^{_pattern(name)}/{_replacement(rename)}/")
    else:
        words.append(r"--transform=flags=rhS;s/^\.\/\(.\)/\1/")
    # a letter is a byte, so that names which are no text can be renamed, too
    return Packing(script(["LC_ALL=C; export LC_ALL", f"exec {shlex.join([*words, *places])}"]))


def _pattern(name: str) -> str:
    """A basic regular expression for `./name`, or for the folder `.` itself."""
    quoted = "".join("\\" + letter if letter in r"\.*[]^$" else letter for letter in name)
    return quoted if name == "." else r"\.\/" + quoted


def _replacement(name: str) -> str:
    return "".join("\\" + letter if letter in r"\&" else letter for letter in name)


def bsdtar_options(owner: tuple[int, int]) -> list[str]:
    """What the tar of FreeBSD and Windows is told, whatever it packs.

    Of its formats only pax keeps sparse files sparse. What no manifest tells of (access lists, attributes, file
    flags) stays behind.
    """
    uid, gid = owner
    return [
        *("--format", "pax", "--no-acls", "--no-xattrs", "--no-fflags"),
        *("--uid", str(uid), "--gid", str(gid), "--numeric-owner"),
    ]
