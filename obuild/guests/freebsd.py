"""The commands of a FreeBSD guest: POSIX shell scripts for the stdin of a root shell.

The guest needs its base system, and sudo or doas without a password if the login user is not root.
Manual pages behind this module: chroot(8) for `-u -g -G`, which takes numbers that are in no file;
mount_nullfs(8); tmpfs(5); bsdtar(1) for `--uid --gid` while unpacking. root's login shell may be csh, so
sshd gets one line in which nothing is special to csh. But csh looks for `!` even in quotes, so a copy to a
path with a `!` fails there with an error.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence

from obuild.guests.posix import (
    ensure_folder,
    inline,
    link_secret,
    open_shell,
    refuse_root,
    say_status,
    script,
    take_secret,
    unlink_secrets,
)
from obuild.guests.tar import Packing, bsdtar_options, names, split
from obuild.spec import UnixUser, WindowsUser

#: A command's PATH unless the spec sets another; as in login.conf(5).
DEFAULT_PATH = "/sbin:/bin:/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"

#: Where caches are in the guest while a step runs; removed before the layer is sealed.
SCRATCH = "/var/obuild-scratch"

#: Where the values of secrets are in the guest, in a tmpfs, while a command runs.
SECRETS = "/var/obuild-secrets"

#: `sudo` and `doas` are both packages here: use the one that is installed.
_BECOME_ROOT = """sh -c 'exec "$(command -v sudo || command -v doas)" -n "$@"' sh"""

#: Run as the new user; the arguments are a workdir, then those of env(1).
_ENTER = '\'cd -P -- "$0" || exit 125; exec env -i "$@"\''


def root_shell(login: str) -> str:
    """The command that runs a script from its stdin as root."""
    return "exec sh" if login == "root" else f"exec {_BECOME_ROOT} sh"


def run_script(
    argv: Iterable[str],
    *,
    cwd: str,
    env: Iterable[tuple[str, str]],
    user: UnixUser | WindowsUser,
    mark: str,
) -> bytes:
    """Run argv as `user` in `cwd`; then print `mark`, the exit status and a newline, in the same pipe.

    chroot(8) does not keep the current folder, so the user's own shell enters the workdir. The environment
    is set after that, so that nothing in it affects a program run as root.
    """
    words = " ".join(shlex.quote(word) for word in argv)
    return script(
        [
            "exec 2>&1",
            *_prepare(cwd, user, otherwise=f"{{ {say_status(mark, '125')}; exit; }}"),
            f"{_become(cwd, env)} {words} </dev/null",
            f"status=$?; {say_status(mark, '$status')}",
        ]
    )


def shell_command(login: str, *, cwd: str, env: Iterable[tuple[str, str]], user: UnixUser | WindowsUser) -> str:
    """The command line of a shell in the place of `run_script`'s command: bash if there is one, else sh."""
    lines = [
        *_prepare(cwd, user, otherwise="exit 125"),
        *open_shell(_become(cwd, env), '"$uid"'),
    ]
    return f"exec {_as_root(login, inline(lines))}"


def _prepare(cwd: str, user: UnixUser | WindowsUser, *, otherwise: str) -> list[str]:
    """Lines that look up the user, or do `otherwise` if there is none, and make the workdir if missing."""
    return [
        f"PATH={DEFAULT_PATH}; export PATH",
        f"{_who(user)} || {otherwise}",
        *ensure_folder(cwd, '"$uid:$gid"'),
        'home=$(getent passwd "$uid" 2>/dev/null | cut -d: -f6)',
    ]


def _become(cwd: str, env: Iterable[tuple[str, str]]) -> str:
    """Words that run the words after them as the user, in the workdir."""
    pairs = " ".join(shlex.quote(f"{name}={value}") for name, value in env)
    return (
        f'chroot -u "$uid" -g "$gid" -G "$groups" / /bin/sh -c {_ENTER} {shlex.quote(cwd)} '
        f'HOME="${{home:-/}}" PATH={DEFAULT_PATH} {pairs}'
    )


def pack_files(
    src: Iterable[str], *, exclude: Iterable[str], rename: str | None, owner: tuple[int, int]
) -> Packing:
    """Pack files of the guest for a copy from a build: find lists them for tar, sorted by name.

    If something cannot be listed, a name that does not exist is put in the list, so that tar fails.
    """
    roots = [_root(path, count) for count, path in enumerate(src, start=1)]
    words = ["tar", "-c", "-P", "-f", "-", *bsdtar_options(owner), "--no-recursion", "--null", "-T", "-"]
    return Packing(
        script(
            [
                "LC_ALL=C; export LC_ALL",  # treat names as bytes
                "cd / || exit",
                """checked() { "$@" || printf 'some files could not be listed\\0'; }""",
                # a slash sorts before all other bytes, so that a folder is followed at once by its content
                r"""list() { checked find "$@" | tr '/\001' '\001/' | checked sort -z | tr '/\001' '\001/'; }""",
                "{",
                *(f"list {shlex.quote(root)} {_unless(exclude)}! -type s -print0" for root in roots),
                f"}} | {shlex.join([*words, *_edits(roots, rename)])}",
            ]
        )
    )


def receive_command(login: str, dest: str, user: UnixUser | WindowsUser) -> str:
    """The command line that unpacks a tar stream from stdin in the folder `dest`, owned by `user`.

    A symlink to a folder is followed, not replaced (-P). Existing folders get the owner and mode of the folders
    that are copied onto them: unlike other tars, FreeBSD's cannot leave them alone. Names that an archive declares
    as UTF-8 (from Windows) need a UTF-8 locale; others stay the same bytes.
    """
    lines = [
        "set -e",
        "LC_ALL=C.UTF-8",
        "export LC_ALL",
        f"{_who(user)} || exit 1",
        *ensure_folder(dest, '"$uid:$gid"'),
        f"cd -P -- {shlex.quote(dest)}",
        'exec tar -x -f - -p -P --same-owner --numeric-owner --uid "$uid" --gid "$gid"',
    ]
    return _as_root(login, f"sh -c {shlex.quote('; '.join(lines))}")


def prepare_scratch() -> bytes:
    """Make the scratch folder, which only root can enter."""
    return script(["set -e", f"mkdir -p {SCRATCH}", f"chmod 700 {SCRATCH}"])


def open_cache(slot: int, target: str, user: UnixUser | WindowsUser) -> bytes:
    """Make an empty cache folder, owned by `user`, and mount it over `target`."""
    folder = f"{SCRATCH}/{slot}"
    return script(
        [
            "set -e",
            f"{_who(user)} || exit 1",
            f"mkdir -p {folder}",
            f'chown "$uid:$gid" {folder}',
            *ensure_folder(target, '"$uid:$gid"'),
            *refuse_root(target),
            f"mount_nullfs {folder} {shlex.quote(target)}",
        ]
    )


def receive_cache(login: str, slot: int) -> str:
    """The command line that unpacks a tar archive from stdin in a cache's folder.

    FreeBSD's tar sets the time of an existing folder before it fills it. So the folder's own entry, if it is the
    first, is held back until the end: an unchanged cache is then packed into the same bytes.
    """
    head = f"{SCRATCH}/{slot}.head"
    options = f"-C {SCRATCH}/{slot} -p --same-owner --numeric-owner"
    lines = [
        "set -e",
        f"dd bs=1 count=512 of={head} 2>/dev/null",
        f'if [ "$(tar -t -f {head} 2>/dev/null)" = ./ ]',
        f"then tar -x -f - {options}; tar -x -f {head} {options}",
        f"else cat {head} - | tar -x -f - {options}; fi",
    ]
    return _as_root(login, f"sh -c {shlex.quote('; '.join(lines))}")


def send_cache(slot: int) -> bytes:
    """Write a cache's folder to stdout as a tar archive, sorted by name.

    On stdout, FreeBSD's tar pads the last record with zeros, as GNU tar always does.
    """
    return script(
        [
            "set -e",
            f"cd {SCRATCH}/{slot}",
            "find . -print0 | LC_ALL=C sort -z | "
            "tar -c -f - --format gnutar --numeric-owner --no-recursion --null -T -",
        ]
    )


def close_caches(targets: Iterable[str]) -> bytes:
    """Unmount the caches, last first, even if a process still uses them, and remove every trace of them."""
    lines = [f"umount -f {shlex.quote(target)}" for target in reversed(tuple(targets))]
    return script(["set -e", *lines, f"rm -rf {SCRATCH}"])


def prepare_secrets() -> bytes:
    """Mount the tmpfs that holds secrets. Users may traverse it, but not list it."""
    return script(["set -e", f"mkdir -p {SECRETS}", f"mount -t tmpfs -o mode=711 tmpfs {SECRETS}"])


def receive_secret(login: str, slot: int) -> str:
    """The command that takes a secret's value from stdin."""
    return _as_root(login, take_secret(f"{SECRETS}/{slot}"))


def open_secret(slot: int, target: str, user: UnixUser | WindowsUser) -> bytes:
    """Link `target` to a secret's file; what was there is put aside. (nullfs mounts files from FreeBSD 14 on.)"""
    return script(
        ["set -e", f"{_who(user)} || exit 1", *link_secret(f"{SECRETS}/{slot}", slot, target, '"$uid:$gid"')]
    )


def close_secrets(targets: Iterable[str]) -> bytes:
    """Remove the links, the folders made for them, and the values; put back what was there."""
    return script(["set -e", *unlink_secrets(SECRETS, targets), f"umount -f {SECRETS}", f"rmdir {SECRETS}"])


def power_off() -> bytes:
    """Power off from inside, for a guest that does not react to the power button."""
    return script(["shutdown -p now"])


def _as_root(login: str, command: str) -> str:
    return command if login == "root" else f"{_BECOME_ROOT} {command}"


def _root(path: str, count: int) -> str:
    """A source as an absolute path that begins with `count` slashes and has single ones in it."""
    folder, name = split(path)
    return "/" * count + "/".join([*(part for part in folder.split("/") if part not in ("", ".")), name])


def _unless(exclude: Iterable[str]) -> str:
    """Words of find that skip files of these names, and what is below them."""
    patterns = (re.sub(r"([\\*?[])", r"\\\1", name) for name in names(exclude))
    tests = " -o ".join(f"-name {shlex.quote(pattern)}" for pattern in patterns)
    return rf"\( {tests} \) -prune -o " if tests else ""


def _edits(roots: Sequence[str], rename: str | None) -> Iterator[str]:
    """Options of tar that strip the folders of the roots, or rename the only one.

    They count bytes, so that no character of a name is special. One root may be inside another: the number of
    slashes before a path says to which root it belongs. The rest begins with no slash, so later rules skip it.
    """
    if rename is not None:
        (root,) = roots
        escaped = re.sub(r"([\\~])", r"\\\1", rename)
        yield from ("-s", f"/^{_any(root)}/{escaped}/S")
        return
    for count, root in reversed(tuple(enumerate(roots, start=1))):
        folder = root[: root.rindex("/") + 1]
        yield from ("-s", f",^{'/' * count}{_any(folder[count:])},,S")


def _any(text: str) -> str:
    return "." * len(os.fsencode(text))


def _who(user: UnixUser | WindowsUser) -> str:
    """Set uid, gid and groups. A user by number has no other groups; one by name has the guest's groups for it."""
    if isinstance(user, UnixUser):
        return f"uid={user.uid} gid={user.gid} groups={user.gid}"
    name = shlex.quote(user.name)
    return f"uid=$(id -u -- {name}) && gid=$(id -g -- {name}) && groups=$(id -G -- {name} | tr ' ' ,)"
