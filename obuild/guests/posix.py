"""Shell lines that all Unix guests share. They are POSIX sh, and every path in them is quoted."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

#: The shell scripts and the program that are sent into guests.
RESIDENT = Path(__file__).parent / "resident"


def resident(name: str) -> str:
    """Return the text of one of these scripts."""
    return (RESIDENT / name).read_text(encoding="ascii")


def script(lines: Iterable[str]) -> bytes:
    """A script of these lines; a name that is not UTF-8 keeps its bytes."""
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape")


def inline(lines: Iterable[str]) -> str:
    """A script of these lines as one command line; its stdin is free.

    root's login shell, which reads it first, may be csh, for which a newline, a quote and `!` are special even
    between quotes. So these, and everything but ASCII, are written as printf(1)'s escapes.
    """
    plain = {*range(32, 127)} - set(b"!'\\")
    text = "".join(chr(byte) if byte in plain else f"\\0{byte:03o}" for byte in script(lines))
    return f"""sh -c 'eval "$(printf %b "$0")"' {shlex.quote(text)}"""


def ensure_folder(path: str, owner: str) -> list[str]:
    """Make `path` and its missing parents, all owned by `owner` (shell text); existing folders do not change."""
    quoted = shlex.quote(path)
    return [
        f"if [ ! -d {quoted} ]; then new={quoted}; top=$new",
        'while [ ! -e "$(dirname -- "$top")" ]; do top=$(dirname -- "$top"); done',
        f'mkdir -p -- "$new" && chown -R {owner} -- "$top"; fi',
    ]


def refuse_root(path: str) -> list[str]:
    """Fail if the folder `path` is a symlink to the root: a mount over the root hides nothing."""
    quoted = shlex.quote(path)
    return [f'[ "$(cd -P -- {quoted} && pwd)" != / ] || {{ echo {quoted} is the root of the guest >&2; exit 1; }}']


def make_parents(path: str, note: str) -> list[str]:
    """Make the parents of `path`, and write the deepest one that existed to the file `note`."""
    quoted = shlex.quote(path)
    return [
        f"top={quoted}",
        'while [ ! -e "$(dirname -- "$top")" ]; do top=$(dirname -- "$top"); done',
        f'mkdir -p -- "$(dirname -- {quoted})"; dirname -- "$top" >{note}',
    ]


def remove_parents(path: str, note: str) -> list[str]:
    """Remove the folders that `make_parents` made, if they are empty."""
    return [
        f"folder=$(dirname -- {shlex.quote(path)})",
        f'while [ "$folder" != "$(cat {note})" ] && rmdir -- "$folder" 2>/dev/null; do',
        'folder=$(dirname -- "$folder"); done',
    ]


def say_status(mark: str, status: str) -> str:
    """Print the mark and an exit status, without a newline before them."""
    return f"printf '%s %d\\n' {shlex.quote(mark)} \"{status}\""


def open_shell(become: str, uid: str) -> list[str]:
    """Replace the script with a shell, bash if there is one; the words `become` make it run as the user.

    That user, `uid` (shell text), gets the terminal, if there is one, which sshd gave to the login. TERM is that
    of the real terminal, whatever the spec has set for its commands.
    """
    return [
        f'tty -s && chown {uid} "$(tty)" 2>/dev/null',
        f'exec {become} TERM="${{TERM:-dumb}}" '
        "/bin/sh -c 'command -v bash >/dev/null 2>&1 && exec bash; exec /bin/sh'",
    ]


def take_secret(file: str) -> str:
    """The command that writes a secret's value from stdin to `file`, readable by root only."""
    return f"sh -c 'umask 077 && exec cat >{file}'"


def link_secret(file: str, slot: int, target: str, owner: str) -> list[str]:
    """Give the secret in `file` to `owner` (shell text) and link `target` to it; what was there is put aside."""
    path, aside = shlex.quote(target), shlex.quote(f"{target}.obuild-secret-{slot}")
    return [
        f"chown {owner} {file}",
        f"chmod 400 {file}",
        f"if [ -e {path} ] || [ -L {path} ]; then mv -- {path} {aside}; else",
        *make_parents(target, f"{file}.made"),
        "fi",
        f"ln -s {file} {path}",
    ]


def unlink_secrets(folder: str, targets: Iterable[str]) -> list[str]:
    """Undo `link_secret` for all targets, the last first; the files are FOLDER/SLOT."""
    lines = []
    for slot, target in reversed(tuple(enumerate(targets))):
        path, aside = shlex.quote(target), shlex.quote(f"{target}.obuild-secret-{slot}")
        lines += [
            f"rm -f -- {path}",
            f"if [ -e {folder}/{slot}.made ]; then",
            *remove_parents(target, f"{folder}/{slot}.made"),
            f"else mv -- {aside} {path}; fi",
        ]
    return lines
