"""How a FreeBSD guest spells what a step needs: POSIX shell scripts, fed to a root shell on stdin.

Needed in the guest: its base system, and sudo or doas without a password where the login user is not root.
Manual pages that lines here rest on: chroot(8) for `-u -g -G`, which takes numbers that no file knows;
mount_nullfs(8); tmpfs(5); bsdtar(1) for `--uid --gid` while unpacking. root's login shell may be csh, so
what sshd is given is one line, and nothing in it is csh's to read; but csh looks for `!` even in quotes, so
there a copy to a path with that in it fails, loudly.
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

#: What a command sees if the spec says nothing else; as in login.conf(5).
DEFAULT_PATH = "/sbin:/bin:/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"

#: Where caches live in the guest while a step runs; gone before the layer is sealed.
SCRATCH = "/var/obuild-scratch"

#: Where the values of secrets live in the guest, in a tmpfs, while a command runs.
SECRETS = "/var/obuild-secrets"

#: `sudo` and `doas` are both packages here: whichever there is.
_BECOME_ROOT = """sh -c 'exec "$(command -v sudo || command -v doas)" -n "$@"' sh"""

#: Run as the new user: its arguments are a workdir, then those of env(1).
_ENTER = '\'cd -P -- "$0" || exit 125; exec env -i "$@"\''


def root_shell(login: str) -> str:
    """The command whose stdin takes a script that runs as root."""
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

    chroot(8) forgets the folder it is called in, so the user's own shell enters the workdir. The environment
    is set after that, so that nothing in it acts on a program run as root.
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
    """The command line of a shell that is where `run_script`'s command would be: bash if there is one, else sh."""
    lines = [
        *_prepare(cwd, user, otherwise="exit 125"),
        *open_shell(_become(cwd, env), '"$uid"'),
    ]
    return f"exec {_as_root(login, inline(lines))}"


def _prepare(cwd: str, user: UnixUser | WindowsUser, *, otherwise: str) -> list[str]:
    """Lines that find out who the user is, or else do `otherwise`, and make the workdir if need be."""
    return [
        f"PATH={DEFAULT_PATH}; export PATH",
        f"{_who(user)} || {otherwise}",
        *ensure_folder(cwd, '"$uid:$gid"'),
        'home=$(getent passwd "$uid" 2>/dev/null | cut -d: -f6)',
    ]


def _become(cwd: str, env: Iterable[tuple[str, str]]) -> str:
    """Words that run those after them as the user, in the workdir."""
    pairs = " ".join(shlex.quote(f"{name}={value}") for name, value in env)
    return (
        f'chroot -u "$uid" -g "$gid" -G "$groups" / /bin/sh -c {_ENTER} {shlex.quote(cwd)} '
        f'HOME="${{home:-/}}" PATH={DEFAULT_PATH} {pairs}'
    )


def pack_files(
    src: Iterable[str], *, exclude: Iterable[str], rename: str | None, owner: tuple[int, int]
) -> Packing:
    """Pack files of the guest, for a copy out of a build: find lists them, in the order of names, for tar.

    What cannot be listed leaves a name in the list that tar does not find either.
    """
    roots = [_root(path, count) for count, path in enumerate(src, start=1)]
    words = ["tar", "-c", "-P", "-f", "-", *bsdtar_options(owner), "--no-recursion", "--null", "-T", "-"]
    return Packing(
        script(
            [
                "LC_ALL=C; export LC_ALL",  # a letter is a byte
                "cd / || exit",
                """checked() { "$@" || printf 'some files could not be listed\\0'; }""",
                # a slash comes before all other bytes, so that what is in a folder follows it at once
                r"""list() { checked find "$@" | tr '/\001' '\001/' | checked sort -z | tr '/\001' '\001/'; }""",
                "{",
                *(f"list {shlex.quote(root)} {_unless(exclude)}! -type s -print0" for root in roots),
                f"}} | {shlex.join([*words, *_edits(roots, rename)])}",
            ]
        )
    )


def receive_command(login: str, dest: str, user: UnixUser | WindowsUser) -> str:
    """The command line that unpacks a tar stream from stdin in the folder `dest`, owned by `user`.

    A symlink to a folder is followed, not replaced (-P). Folders that exist get the owner and mode of those
    that are copied onto them: FreeBSD's tar has no way to leave them, other than other guests' tars. Names that
    an archive says are UTF-8, as from Windows, need a locale that has them; others stay the bytes they are.
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

    FreeBSD's tar gives a folder that is there its time before it fills it. So the folder's own entry, if it is
    the first, is held back and comes last: a cache in which nothing is changed is then packed into the same bytes.
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
    """Write a cache's folder to stdout as a tar archive, in the order of names.

    To stdout, FreeBSD's tar fills the last record up with zeros, as GNU's always does.
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
    """Unmount the caches, last first, though a process may use them still; and remove every trace of them."""
    lines = [f"umount -f {shlex.quote(target)}" for target in reversed(tuple(targets))]
    return script(["set -e", *lines, f"rm -rf {SCRATCH}"])


def prepare_secrets() -> bytes:
    """Mount the tmpfs that holds secrets. Users may pass through it, but not see what is in it."""
    return script(["set -e", f"mkdir -p {SECRETS}", f"mount -t tmpfs -o mode=711 tmpfs {SECRETS}"])


def receive_secret(login: str, slot: int) -> str:
    """The command that takes a secret's value from stdin."""
    return _as_root(login, take_secret(f"{SECRETS}/{slot}"))


def open_secret(slot: int, target: str, user: UnixUser | WindowsUser) -> bytes:
    """Link `target` to a secret's file; what is there is put aside. (nullfs mounts no files before FreeBSD 14.)"""
    return script(
        ["set -e", f"{_who(user)} || exit 1", *link_secret(f"{SECRETS}/{slot}", slot, target, '"$uid:$gid"')]
    )


def close_secrets(targets: Iterable[str]) -> bytes:
    """Remove the links, the folders made for them, and the values."""
    return script(["set -e", *unlink_secrets(SECRETS, targets), f"umount -f {SECRETS}", f"rmdir {SECRETS}"])


def power_off() -> bytes:
    """Power off from inside, for a guest that does not hear the power button."""
    return script(["shutdown -p now"])


def _as_root(login: str, command: str) -> str:
    return command if login == "root" else f"{_BECOME_ROOT} {command}"


def _root(path: str, count: int) -> str:
    """A source from the root, with `count` slashes before it, and single ones in it."""
    folder, name = split(path)
    return "/" * count + "/".join([*(part for part in folder.split("/") if part not in ("", ".")), name])


def _unless(exclude: Iterable[str]) -> str:
    """Words of find that pass over files of these names, and what is below them."""
    patterns = (re.sub(r"([\\*?[])", r"\\\1", name) for name in names(exclude))
    tests = " -o ".join(f"-name {shlex.quote(pattern)}" for pattern in patterns)
    return rf"\( {tests} \) -prune -o " if tests else ""


def _edits(roots: Sequence[str], rename: str | None) -> Iterator[str]:
    """Words of tar that cut off the folders of the roots, or rename the only one.

    They go by the number of bytes, so that nothing in a name means anything. One root may lie in another: the
    slashes before it tell to which a path belongs. What is left of it begins with none, so later rules leave it.
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
    """Set uid, gid and groups. A number has no other groups; a name has those that the guest gives it."""
    if isinstance(user, UnixUser):
        return f"uid={user.uid} gid={user.gid} groups={user.gid}"
    name = shlex.quote(user.name)
    return f"uid=$(id -u -- {name}) && gid=$(id -g -- {name}) && groups=$(id -G -- {name} | tr ' ' ,)"
