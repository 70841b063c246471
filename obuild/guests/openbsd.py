"""The commands of an OpenBSD guest: POSIX shell scripts for the stdin of a root shell.

The guest needs its base system (perl is part of it), the package gtar, and a line `permit nopass LOGIN` in
doas.conf(5) if the login user is not root. OpenBSD has no bind mounts, so a cache's folder replaces what is at its
target, which is put aside under another name in the same folder: one rename each way, within one file system.
Manual pages behind this module: doas(1), mount_mfs(8), perlvar(1) for `$)`.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from obuild.guests.posix import (
    ensure_folder,
    inline,
    link_secret,
    open_shell,
    say_status,
    script,
    take_secret,
    unlink_secrets,
)
from obuild.guests.tar import Packing, by_gnu_tar
from obuild.spec import UnixUser, WindowsUser

#: A command's PATH unless the spec sets another; as in login.conf(5).
DEFAULT_PATH = "/usr/bin:/bin:/usr/sbin:/sbin:/usr/X11R6/bin:/usr/local/bin:/usr/local/sbin"

#: Where caches are recorded in the guest while a step runs; removed before the layer is sealed.
SCRATCH = "/var/obuild-scratch"

#: Where the values of secrets are in the guest, in a memory file system, while a command runs.
SECRETS = "/var/obuild-secrets"

#: Become a uid and gid, which may be unknown to the guest: doas, su and chroot need a line in passwd(5).
_BECOME = (
    "perl -MPOSIX=setuid,setgid -e '"
    'my ($u, $g) = splice @ARGV, 0, 2; $) = "$g $g"; '
    'setgid($g) && (grep { $_ != $g } split / /, $)) == 0 && setuid($u) or die "cannot become $u:$g: $!\\n"; '
    'exec { $ARGV[0] } @ARGV or die "$ARGV[0]: $!\\n"\''
)

#: Run as the new user; the arguments are a workdir, then those of env(1).
_ENTER = '\'cd -P -- "$0" || exit 125; exec env -i "$@"\''


def root_shell(login: str) -> str:
    """The command that runs a script from its stdin as root."""
    return "exec sh" if login == "root" else "exec doas -n sh"


def run_script(
    argv: Iterable[str],
    *,
    cwd: str,
    env: Iterable[tuple[str, str]],
    user: UnixUser | WindowsUser,
    mark: str,
) -> bytes:
    """Run argv as `user` in `cwd`; then print `mark`, the exit status and a newline, in the same pipe.

    The environment is set last, so that nothing in it affects a program run as root.
    """
    words = " ".join(shlex.quote(word) for word in argv)
    return script(
        [
            "exec 2>&1",
            *_prepare(cwd, user),
            f"{_become(cwd, env, user)} {words} </dev/null",
            f"status=$?; {say_status(mark, '$status')}",
        ]
    )


def shell_command(login: str, *, cwd: str, env: Iterable[tuple[str, str]], user: UnixUser | WindowsUser) -> str:
    """The command line of a shell in the place of `run_script`'s command: bash if there is one, else sh."""
    lines = [
        *_prepare(cwd, user),
        *open_shell(_become(cwd, env, user), str(_ids(user)[0])),
    ]
    return f"exec {_as_root(login, inline(lines))}"


def _prepare(cwd: str, user: UnixUser | WindowsUser) -> list[str]:
    """Lines that make the workdir if missing, and find the user's home folder."""
    uid, gid = _ids(user)
    return [
        f"PATH={DEFAULT_PATH}; export PATH",
        *ensure_folder(cwd, f"{uid}:{gid}"),
        f"home=$(getent passwd {uid} 2>/dev/null | cut -d: -f6)",
    ]


def _become(cwd: str, env: Iterable[tuple[str, str]], user: UnixUser | WindowsUser) -> str:
    """Words that run the words after them as the user, in the workdir."""
    uid, gid = _ids(user)
    pairs = " ".join(shlex.quote(f"{name}={value}") for name, value in env)
    return (
        f"{_BECOME} {uid} {gid} /bin/sh -c {_ENTER} {shlex.quote(cwd)} "
        f'HOME="${{home:-/}}" PATH={DEFAULT_PATH} {pairs}'
    )


def pack_files(
    src: Iterable[str], *, exclude: Iterable[str], rename: str | None, owner: tuple[int, int]
) -> Packing:
    """Pack files of the guest for a copy from a build."""
    return by_gnu_tar(("gtar",), src, exclude=exclude, rename=rename, owner=owner)


def receive_command(login: str, dest: str, user: UnixUser | WindowsUser) -> str:
    """The command line that unpacks a tar stream from stdin in the folder `dest`, as root.

    Existing folders keep their owner and mode, and a symlink to a folder is followed, not replaced.
    """
    uid, gid = _ids(user)
    lines = [
        "set -e",
        *ensure_folder(dest, f"{uid}:{gid}"),
        f"cd -P -- {shlex.quote(dest)}",
        "exec gtar --extract --file=- --same-permissions --same-owner --numeric-owner "
        "--no-overwrite-dir --keep-directory-symlink",
    ]
    return _as_root(login, f"sh -c {shlex.quote('; '.join(lines))}")


def prepare_scratch() -> bytes:
    """Make the scratch folder, which only root can enter."""
    return script(["set -e", f"mkdir -p {SCRATCH}", f"chmod 700 {SCRATCH}"])


def open_cache(slot: int, target: str, user: UnixUser | WindowsUser) -> bytes:
    """Put what is at `target` aside and an empty folder, owned by `user`, in its place; record that."""
    uid, gid = _ids(user)
    path, aside = shlex.quote(target), shlex.quote(_aside(target, slot))
    return script(
        [
            "set -e",
            *ensure_folder(target, f"{uid}:{gid}"),
            f"[ ! -e {aside} ]",
            f"mv -- {path} {aside}",
            f"printf %s {path} >{SCRATCH}/{slot}.target",
            f"mkdir -- {path}",
            f"chown {uid}:{gid} {path}",
        ]
    )


def receive_cache(login: str, slot: int) -> str:
    """The command that unpacks a tar archive from stdin in a cache's folder, which is its target."""
    lines = [
        "set -e",
        *_read_target(str(slot)),
        'exec gtar --extract --file=- --directory="$target" --same-permissions --same-owner --numeric-owner',
    ]
    return _as_root(login, f"sh -c {shlex.quote('; '.join(lines))}")


def send_cache(slot: int) -> bytes:
    """Write a cache's folder to stdout as a tar archive, sorted by name, and put back what was at its target.

    So a cache inside another is removed from it before the other is packed.
    """
    return script(
        [
            "set -e",
            *_read_target(str(slot)),
            # 1: a file changed while it was read, by a process that the step has left running
            'gtar --create --file=- --directory="$target" --format=gnu '
            "--sort=name --numeric-owner --sparse . || [ $? -eq 1 ]",
            *_put_back(str(slot)),
        ]
    )


def close_caches(targets: Iterable[str]) -> bytes:
    """Put back what was at the targets, last first, unless that was done, and remove every trace of the caches."""
    return script(
        [
            "set -e",
            f"for slot in $(ls {SCRATCH} | sed -n 's/\\.target$//p' | sort -rn); do",
            *_read_target("$slot"),
            *_put_back("$slot"),
            f"done; rm -rf {SCRATCH}",
        ]
    )


def prepare_secrets() -> bytes:
    """Mount the memory file system that holds secrets (16 MiB). Users may traverse it, but not list it.

    It may be swapped out, but OpenBSD encrypts swap with keys that it discards.
    """
    return script(
        [
            "set -e",
            f"mkdir -p {SECRETS}",
            f"mount_mfs -o nodev,nosuid -s 32768 swap {SECRETS}",
            f"chmod 711 {SECRETS}",
        ]
    )


def receive_secret(login: str, slot: int) -> str:
    """The command that takes a secret's value from stdin."""
    return _as_root(login, take_secret(f"{SECRETS}/{slot}"))


def open_secret(slot: int, target: str, user: UnixUser | WindowsUser) -> bytes:
    """Link `target` to a secret's file; what was there is put aside."""
    uid, gid = _ids(user)
    return script(["set -e", *link_secret(f"{SECRETS}/{slot}", slot, target, f"{uid}:{gid}")])


def close_secrets(targets: Iterable[str]) -> bytes:
    """Remove the links, the folders made for them, and the values; put back what was there."""
    return script(["set -e", *unlink_secrets(SECRETS, targets), f"umount -f {SECRETS}", f"rmdir {SECRETS}"])


def power_off() -> bytes:
    """Power off from inside, for a guest that does not react to the power button."""
    return script(["halt -p"])


def _put_back(slot: str) -> list[str]:
    """Remove a cache from its `target`, put back what was there, and record that."""
    return [
        'rm -rf -- "$target"',
        f'mv -- "{_aside("$target", slot)}" "$target"',
        f"rm {SCRATCH}/{slot}.target",
    ]


def _read_target(slot: str) -> list[str]:
    """Set `target`; the dot protects newlines at its end."""
    return [f"target=$(cat {SCRATCH}/{slot}.target; echo .)", "target=${target%.}"]


def _aside(target: str, slot: int | str) -> str:
    return f"{target}.obuild-{slot}"


def _as_root(login: str, command: str) -> str:
    return command if login == "root" else f"doas -n {command}"


def _ids(user: UnixUser | WindowsUser) -> tuple[int, int]:
    if isinstance(user, WindowsUser):
        raise TypeError("an OpenBSD guest knows users by number")  # plan refuses it with the op's line
    return user.uid, user.gid
