"""How an OpenBSD guest spells what a step needs: POSIX shell scripts, fed to a root shell on stdin.

Needed in the guest: its base system (perl is part of it), the package gtar, and a line `permit nopass LOGIN` in
doas.conf(5) where the login user is not root. OpenBSD has no bind mounts, so a cache is a folder that takes the
place of what is at its target, which is put aside under a name of its own in the same folder: one rename each way,
within one file system. Manual pages that lines here rest on: doas(1), mount_mfs(8), perlvar(1) for `$)`.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from obuild.posix import ensure_folder, link_secret, say_status, script, unlink_secrets
from obuild.spec import UnixUser, WindowsUser

#: What a command sees if the spec says nothing else; as in login.conf(5).
DEFAULT_PATH = "/usr/bin:/bin:/usr/sbin:/sbin:/usr/X11R6/bin:/usr/local/bin:/usr/local/sbin"

#: Where caches are packed in the guest; gone before the layer is sealed.
SCRATCH = "/var/obuild-scratch"

#: Where the values of secrets live in the guest, in a memory file system, while a command runs.
SECRETS = "/var/obuild-secrets"

#: Become a uid and gid that the guest need not know: doas, su and chroot want a line in passwd(5).
_BECOME = (
    "perl -MPOSIX=setuid,setgid -e '"
    'my ($u, $g) = splice @ARGV, 0, 2; $) = "$g $g"; '
    'setgid($g) && (grep { $_ != $g } split / /, $)) == 0 && setuid($u) or die "cannot become $u:$g: $!\\n"; '
    'exec { $ARGV[0] } @ARGV or die "$ARGV[0]: $!\\n"\''
)

#: Run as the new user: its arguments are a workdir, then those of env(1).
_ENTER = '\'cd -P -- "$0" || exit 125; exec env -i "$@"\''


def root_shell(login: str) -> str:
    """The command whose stdin takes a script that runs as root."""
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

    The environment is set last, so that nothing in it acts on a program run as root.
    """
    uid, gid = _ids(user)
    words = " ".join(shlex.quote(word) for word in argv)
    pairs = " ".join(shlex.quote(f"{name}={value}") for name, value in env)
    return script(
        [
            "exec 2>&1",
            f"PATH={DEFAULT_PATH}; export PATH",
            *ensure_folder(cwd, f"{uid}:{gid}"),
            f"home=$(getent passwd {uid} 2>/dev/null | cut -d: -f6)",
            f"{_BECOME} {uid} {gid} /bin/sh -c {_ENTER} {shlex.quote(cwd)} "
            f'HOME="${{home:-/}}" PATH={DEFAULT_PATH} {pairs} {words} </dev/null',
            f"status=$?; {say_status(mark, '$status')}",
        ]
    )


def receive_command(login: str, dest: str, user: UnixUser | WindowsUser) -> str:
    """The command line that unpacks a tar stream from stdin in the folder `dest`, as root.

    Folders that exist keep their owner and mode, and a symlink to a folder is followed, not replaced.
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


def prepare_scratch(login: str) -> bytes:
    """Make the scratch folder, which only root and the login user can enter."""
    return script(
        ["set -e", f"mkdir -p {SCRATCH}", f"chmod 700 {SCRATCH}", f"chown {shlex.quote(login)} {SCRATCH}"]
    )


def open_cache(slot: int, target: str, user: UnixUser | WindowsUser) -> bytes:
    """Put what is at `target` aside and an empty folder, owned by `user`, in its place; note that it is so."""
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


def unpack_cache(slot: int) -> bytes:
    """Unpack SCRATCH/SLOT.tar into its cache folder."""
    return script(
        [
            "set -e",
            *_read_target(str(slot)),
            f'gtar --extract --file={SCRATCH}/{slot}.tar --directory="$target" '
            "--same-permissions --same-owner --numeric-owner",
            f"rm {SCRATCH}/{slot}.tar",
        ]
    )


def pack_cache(slot: int) -> bytes:
    """Pack a cache folder into SCRATCH/SLOT.tar, in the order of names.

    The first call packs every cache and puts back what was at its target, last first: one that lies within
    another must be out of it before that one is packed.
    """
    return script(["set -e", *_put_back(), f"[ -e {SCRATCH}/{slot}.tar ]"])


def close_caches(targets: Iterable[str]) -> bytes:
    """Put back what was at the targets, unless that is done, and remove every trace of the caches."""
    return script(["set -e", *_put_back(), f"rm -rf {SCRATCH}"])


def cache_archive(slot: int) -> str:
    """Where a cache's archive lies in the guest, between scp and tar."""
    return f"{SCRATCH}/{slot}.tar"


def prepare_secrets() -> bytes:
    """Mount the memory file system that holds secrets (16 MiB). Users may pass through it, not see what is in it.

    It may be swapped out, but OpenBSD encrypts what it swaps with keys that it forgets.
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
    return _as_root(login, f"sh -c 'umask 077 && exec cat >{SECRETS}/{slot}'")


def open_secret(slot: int, target: str, user: UnixUser | WindowsUser) -> bytes:
    """Link `target` to a secret's file; what is there is put aside."""
    uid, gid = _ids(user)
    return script(["set -e", *link_secret(f"{SECRETS}/{slot}", slot, target, f"{uid}:{gid}")])


def close_secrets(targets: Iterable[str]) -> bytes:
    """Remove the links, the folders made for them, and the values."""
    return script(["set -e", *unlink_secrets(SECRETS, targets), f"umount -f {SECRETS}", f"rmdir {SECRETS}"])


def power_off() -> bytes:
    """Power off from inside, for a guest that does not hear the power button."""
    return script(["halt -p"])


def _put_back() -> list[str]:
    return [
        f"for slot in $(ls {SCRATCH} | sed -n 's/\\.target$//p' | sort -rn); do",
        *_read_target("$slot"),
        # 1: a file changed as it was read, by a process that the step left running
        f'gtar --create --file={SCRATCH}/$slot.tar --directory="$target" --format=gnu '
        "--sort=name --numeric-owner --sparse . || [ $? -eq 1 ]",
        'rm -rf -- "$target"',
        f'mv -- "{_aside("$target", "$slot")}" "$target"',
        f"rm {SCRATCH}/$slot.target; done",
    ]


def _read_target(slot: str) -> list[str]:
    """Set `target`; the dot saves newlines at its end."""
    return [f"target=$(cat {SCRATCH}/{slot}.target; echo .)", "target=${target%.}"]


def _aside(target: str, slot: int | str) -> str:
    return f"{target}.obuild-{slot}"


def _as_root(login: str, command: str) -> str:
    return command if login == "root" else f"doas -n {command}"


def _ids(user: UnixUser | WindowsUser) -> tuple[int, int]:
    if isinstance(user, WindowsUser):
        raise TypeError("an OpenBSD guest knows users by number")  # plan refuses it with the op's line
    return user.uid, user.gid
