"""The commands of a Linux guest: POSIX shell scripts for the stdin of a root shell.

Scripts go through stdin so that commands, environment and secrets are not in the guest's process list, and are
not limited to the length of a command line. Nothing here runs them.

The guest needs a POSIX sh, GNU or busybox coreutils, GNU tar, mount, setpriv (util-linux) or sudo, and
sudo without a password if the login user is not root.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from obuild.guests.posix import (
    ensure_folder,
    inline,
    open_shell,
    refuse_root,
    resident,
    say_status,
    script,
    take_secret,
)
from obuild.guests.tar import Packing, by_gnu_tar
from obuild.spec import UnixUser, WindowsUser

#: A command's PATH unless the spec sets another; as in a login shell of Debian's root.
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: Where caches are in the guest while a step runs; removed before the layer is sealed.
SCRATCH = "/var/lib/obuild-scratch"


#: Where the values of secrets are in the guest, in a tmpfs, while a command runs.
SECRETS = "/run/obuild-secrets"


def root_shell(login: str) -> str:
    """The command that runs a script from its stdin as root."""
    return "exec sh" if login == "root" else "exec sudo -n sh"


def as_root(login: str, command: str) -> str:
    """A command line that runs `command` (already quoted) as root."""
    return command if login == "root" else f"sudo -n {command}"


def run_script(
    argv: Iterable[str],
    *,
    cwd: str,
    env: Iterable[tuple[str, str]],
    user: UnixUser | WindowsUser,
    mark: str,
) -> bytes:
    """Run argv as `user` in `cwd`; then print `mark`, the exit status and a newline.

    The mark comes through the same pipe as the output, so all output of the command itself comes before it,
    and a background process that the command has left running does not delay it.
    """
    words = " ".join(shlex.quote(word) for word in argv)
    return script(
        [
            "exec 2>&1",
            *_enter(cwd, user, otherwise=f"{{ {say_status(mark, '125')}; exit; }}"),
            f"{_become(env)} {words} </dev/null",
            f"status=$?; {say_status(mark, '$status')}",
        ]
    )


def shell_command(login: str, *, cwd: str, env: Iterable[tuple[str, str]], user: UnixUser | WindowsUser) -> str:
    """The command line of a shell in the place of `run_script`'s command: bash if there is one, else sh."""
    lines = [
        *_enter(cwd, user, otherwise="exit 125"),
        *open_shell(_become(env), str(ids(user)[0])),
    ]
    return f"exec {as_root(login, inline(lines))}"


def _enter(cwd: str, user: UnixUser | WindowsUser, *, otherwise: str) -> list[str]:
    """Lines that enter the workdir, or do `otherwise` if they cannot, and find out how to become the user."""
    uid, gid = ids(user)
    return [
        *ensure_folder(cwd, f"{uid}:{gid}"),
        f"cd -P {shlex.quote(cwd)} || {otherwise}",
        *_find_home(uid),
        *_how_to_become(uid, gid),
    ]


def _how_to_become(uid: int, gid: int) -> list[str]:
    if uid == gid == 0:
        return ["become="]  # the script runs as root
    return [
        f"become='setpriv --reuid {uid} --regid {gid} --clear-groups --'",
        f"command -v setpriv >/dev/null || become='sudo -n -u #{uid} -g #{gid} --'",
    ]


def _become(env: Iterable[tuple[str, str]]) -> str:
    """Words that run the words after them as the user.

    The environment is set last, so that nothing in it (such as LD_PRELOAD) affects a program run as root.
    """
    pairs = " ".join(shlex.quote(f"{name}={value}") for name, value in env)
    return f'$become env -i HOME="${{home:-/}}" PATH={DEFAULT_PATH} {pairs}'


def _find_home(uid: int) -> list[str]:
    """Set `home` to the user's home folder. Starting programs is slow in an emulated guest, so try without one."""
    return [
        "home=",
        "while IFS=: read -r _ _ id _ _ folder _; do",
        f'if [ "$id" = {uid} ]; then home=$folder; break; fi; done </etc/passwd 2>/dev/null',
        f'[ -n "$home" ] || home=$(getent passwd {uid} 2>/dev/null | cut -d: -f6)',
    ]


def receive_script(dest: str, user: UnixUser | WindowsUser) -> bytes:
    """The command that unpacks a tar stream from stdin in the folder `dest`, as root.

    Existing folders keep their owner and mode, and a symlink to a folder is followed, not replaced.
    """
    uid, gid = ids(user)
    lines = [
        *ensure_folder(dest, f"{uid}:{gid}"),
        f"cd -P {shlex.quote(dest)} && "
        "exec tar --extract --file=- --same-permissions --same-owner --numeric-owner "
        "--no-overwrite-dir --keep-directory-symlink",
    ]
    return script(lines)


def receive_command(login: str, dest: str, user: UnixUser | WindowsUser) -> str:
    """`receive_script` as a command line, since stdin is the stream."""
    text = receive_script(dest, user).decode(errors="surrogateescape")
    return as_root(login, f"sh -c {shlex.quote(text)}")


def pack_files(
    src: Iterable[str], *, exclude: Iterable[str], rename: str | None, owner: tuple[int, int]
) -> Packing:
    """Pack files of the guest for a copy from a build.

    A mount point below one of them is packed as an empty folder: /proc and /sys belong to the machine, not to the
    image.
    """
    tar = ("tar", "--one-file-system")
    return by_gnu_tar(tar, src, exclude=exclude, rename=rename, owner=owner)


def open_cache(slot: int, target: str, user: UnixUser | WindowsUser) -> bytes:
    """Make an empty cache folder, owned by `user`, and mount it over `target`.

    It hides what the image has at `target`, and nothing written there gets into the layer.
    """
    uid, gid = ids(user)
    folder = f"{SCRATCH}/{slot}"
    lines = [
        "set -e",
        f"mkdir -p {folder}",
        f"chown {uid}:{gid} {folder}",
        *ensure_folder(target, f"{uid}:{gid}"),
        *refuse_root(target),
        f"mount --bind {folder} {shlex.quote(target)}",
        # under systemd mounts are shared: one inside this cache would also appear in its folder, and be packed
        f"mount --make-private {shlex.quote(target)}",
    ]
    return script(lines)


def receive_cache(login: str, slot: int) -> str:
    """The command that unpacks a tar archive from stdin in a cache's folder."""
    return as_root(login, unpack_command(f"{SCRATCH}/{slot}"))


def unpack_command(folder: str) -> str:
    """The command that unpacks a cache's archive from stdin in a folder."""
    return f"tar --extract --file=- --directory={folder} --same-permissions --same-owner --numeric-owner"


def send_cache(slot: int) -> bytes:
    """Write a cache's folder to stdout as a tar archive; the same files give the same bytes."""
    # 1: a file changed while it was read, by a process that the step has left running
    return script([f"{pack_command(f'{SCRATCH}/{slot}')} || [ $? -eq 1 ]"])


def pack_command(folder: str) -> str:
    """The command that writes the archive of a cache in a folder to stdout."""
    return f"tar --create --file=- --directory={folder} --format=gnu --sort=name --numeric-owner --sparse ."


def close_caches(targets: Iterable[str]) -> bytes:
    """Unmount the caches, last first, and remove every trace of them."""
    lines = [f"umount -l {shlex.quote(target)}" for target in reversed(tuple(targets))]
    return script(["set -e", *lines, f"rm -rf {SCRATCH}"])


def prepare_secrets() -> bytes:
    """Mount the tmpfs that holds secrets: their values never touch the guest's disk."""
    return script(["set -e", f"mkdir -p {SECRETS}", f"mount -t tmpfs -o mode=700 tmpfs {SECRETS}"])


def receive_secret(login: str, slot: int) -> str:
    """The command that takes a secret's value from stdin."""
    return as_root(login, take_secret(f"{SECRETS}/{slot}"))


def open_secret(slot: int, target: str, user: UnixUser | WindowsUser) -> bytes:
    """Mount a secret's file read-only at `target`; record what had to be made for that, to remove it later."""
    uid, gid = ids(user)
    file, path = f"{SECRETS}/{slot}", shlex.quote(target)
    lines = [
        "set -e",
        f"chown {uid}:{gid} {file}",
        f"chmod 400 {file}",
        f"if [ ! -e {path} ]; then top={path}",
        'while [ ! -e "$(dirname -- "$top")" ]; do top=$(dirname -- "$top"); done',
        f'mkdir -p -- "$(dirname -- {path})"; : >{path}; dirname -- "$top" >{file}.made; fi',
        f"mount --bind {file} {path}",
        f"mount -o remount,bind,ro {path}",
    ]
    return script(lines)


def close_secrets(targets: Iterable[str]) -> bytes:
    """Unmount the secrets and remove every trace of them."""
    lines = ["set -e"]
    for slot, target in reversed(tuple(enumerate(targets))):
        path, made = shlex.quote(target), f"{SECRETS}/{slot}.made"
        lines += [
            f"umount -l {path}",
            f"if [ -e {made} ]; then rm -f -- {path}; folder=$(dirname -- {path})",
            f'while [ "$folder" != "$(cat {made})" ] && rmdir -- "$folder" 2>/dev/null; do',
            'folder=$(dirname -- "$folder"); done; fi',
        ]
    return script([*lines, f"umount {SECRETS}", f"rmdir {SECRETS}"])


def prepare_scratch() -> bytes:
    """Make the scratch folder, which only root can enter."""
    return script(["set -e", f"mkdir -p {SCRATCH}", f"chmod 700 {SCRATCH}"])


def power_off() -> bytes:
    """Power off from inside, for a guest that does not react to the power button."""
    return script(["poweroff || shutdown -P now"])


def freeze_script(mark: str) -> bytes:
    """Freeze all disks, the root last; then print `mark STATUS` and a newline. No program starts after that.

    Those that cannot be frozen are mounted read-only.
    """
    lines = [
        "exec 2>&1",
        resident("disks.sh"),
        "find_disks; sync; status=0",
        'for mount in $disks; do mount=$(printf %b "$mount")',
        'fsfreeze -f "$mount" || mount -o remount,ro "$mount" || status=1; done',
        say_status(mark, "$status"),
    ]
    return script(lines)


def ids(user: UnixUser | WindowsUser) -> tuple[int, int]:
    """The numbers of a user and its group."""
    if isinstance(user, WindowsUser):
        raise TypeError("a Linux guest has no Windows users")  # plan refuses it with the op's line
    return user.uid, user.gid
