"""The script that makes a file system of the folder that mmdebstrap has filled: the same for the same packages."""

from __future__ import annotations

import platform
import shlex
from pathlib import Path

from obuild.bases.kind import Recipe
from obuild.bases.scratch import ext4, layouts, root_files
from obuild.bases.scratch.options import Options
from obuild.bases.scratch.root_partition import START, disk_id
from obuild.guests import profile
from obuild.guests.profile import INITRD, KERNEL
from obuild.host.qemu_img import KEY_BLOCK

#: Packages for a merged /usr do not bring the links themselves.
MERGE_USR = 'for dir in bin sbin lib lib64; do mkdir -p "$1/usr/$dir" && ln -sT "usr/$dir" "$1/$dir"; done'

#: So that openssh-server makes no keys, of which one takes long. None is in the image: see "Room for keys" below.
HOST_KEYS = (
    'mkdir -p -m 755 "$1/etc" "$1/etc/ssh" && '
    'for kind in rsa ecdsa ed25519; do touch "$1/etc/ssh/ssh_host_${kind}_key"; done'
)

#: While the recipe's script runs, cpio in the new root takes no times, inodes or order from this host.
_CPIO = """\
#!/bin/sh
case " $* " in
*" --create "* | *" -o"*) ;;
*) exec cpio.real "$@" ;;
esac
find . -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
tr '\\n' '\\0' | LC_ALL=C sort -z | exec cpio.real --null --reproducible "$@"
"""

#: /vmlinuz and /initrd.img are links to the kernel. Only GRUB looks for them in the root.
TAKE_KERNEL = f"""\
cat "$root/vmlinuz" >{{here}}/boot{KERNEL}
cat "$root/initrd.img" >{{here}}/boot{INITRD}
rm -r "$root/vmlinuz" "$root/initrd.img" "$root"/boot/*
"""


#: How the image gets its date: as old as its newest package, or as what the archive signed last.
EPOCHS: dict[int | str, str] = {
    "packages": """\
newest=$(find "$root"/usr/share/doc/*/ -maxdepth 1 -name 'changelog*.gz' -printf '%T@\\n' | sort -n | tail -n 1)
SOURCE_DATE_EPOCH=${newest%.*}""",
    "release": """\
dates=$(grep -h -m 1 '^Date: ' "$root"/var/lib/apt/lists/*Release)
SOURCE_DATE_EPOCH=$(echo "$dates" | sed 's/^Date: //' | date -f - +%s | sort -n | tail -n 1)""",
}

#: The packages, and what the archive said of them.
LAY_ASIDE = """\
cp "$root"/var/cache/apt/archives/*.deb {here}/debs
cp "$root"/var/lib/apt/lists/*Release "$root"/var/lib/apt/lists/*_Packages {here}/lists
"""

#: A link out of the new root, such as /var/run, leads to a folder of this host while nothing runs in the root.
SEE_INSIDE = """\
inside=$(realpath "$root")
see_inside() {
    case $(realpath -m "$root/$1") in
    "$inside" | "$inside"/*) ;;
    *)
        echo "/$1 is behind a link that leads out of the new root: name the folder that it means" >{here}/complaint
        exit 1
        ;;
    esac
}"""

#: Whatever the recipe puts into the root goes through no such link.
CHECK_FOLDERS = """\
while IFS= read -r folder; do
    if [ -L "$root/$folder" ]; then see_inside "$folder"; fi
done <{here}/folders"""

#: What mmdebstrap, apt and dpkg leave of this day and this host, and what is empty in a machine that is off.
LEFT_BEHIND = (
    "/etc/apt/apt.conf.d/*mmdebstrap",
    "/etc/dpkg/dpkg.cfg.d/*mmdebstrap",
    "/usr/sbin/policy-rc.d",
    "/var/lib/apt/lists/*",
    "/var/cache/apt/*",
    "/var/cache/ldconfig/aux-cache",
    "/var/log/apt/*",
    "/var/log/dpkg.log",
    "/var/log/alternatives.log",
    "/var/log/bootstrap.log",
    "/run/*",
    "/tmp/*",
    "/var/tmp/*",
)


def _presets(recipe: Recipe) -> str:
    """Have systemd's presets decide what starts at boot: by the root's own systemctl, if that can run here."""
    if is_native(recipe):
        return """\
if ! chroot "$root" systemctl --quiet preset-all; then
    echo "presets: systemctl preset-all fails in the new root; is the package systemd in it?" >{here}/complaint
    exit 1
fi"""
    return 'systemctl --quiet --root="$root" preset-all'


def is_native(recipe: Recipe) -> bool:
    """Whether programs of the new root can run on this host."""
    host = platform.machine()
    return recipe.card.arch == profile.ARCH_ALIASES.get(host, host)


def removal(globs: tuple[str, ...], here: str) -> str:
    """Remove what matches one of `globs`. Links are not followed, so nothing outside the new root is reached."""
    tests = " -o ".join(f"-regex {shlex.quote(f'.{root_files.regex(glob)}')}" for glob in globs)
    return (
        f"(cd {here}/bare && find -P . -xdev -mindepth 1 -regextype posix-extended '(' {tests} ')' -prune \\\n"
        "    -exec rm -rf --one-file-system {} +)"
    )


def inputs() -> dict[str, str]:
    """The files that the script reads besides those of the recipe, by name."""
    return {"mke2fs.conf": ext4.CONFIG, "cpio": _CPIO, "blank": "\n" * KEY_BLOCK}


def text(recipe: Recipe, work: Path, *, keep: bool = False) -> str:
    """The script that mmdebstrap runs when the packages are in place. With `keep` it lays them aside for us.

    It runs where owners are what the guest shall see, and finds its inputs in `work`. What it finds out for us it
    writes into files there: the time that the image is dated with, and the paths of the two files for keys.
    """
    options: Options = recipe.options
    here = shlex.quote(str(work))
    layout = layouts.of(recipe)
    make_fs = ext4.mke2fs_argv(work, disk_id(recipe), start=START, size=layout.root_size(recipe.size))
    return f"""\
#!/bin/sh
set -eu
umask 022
root=$1
{EPOCHS.get(options.epoch, f"SOURCE_DATE_EPOCH={options.epoch}")}
export SOURCE_DATE_EPOCH
echo "${{SOURCE_DATE_EPOCH:?nothing dates the image; write epoch into the recipe}}" >{here}/epoch

(cd "$root/var/cache/apt/archives" && sha256sum *.deb) >{here}/packages
{LAY_ASIDE.format(here=here) if keep else ""}
cp {here}/sources.list "$root/etc/apt/sources.list"
# mmdebstrap's copies of this host's.
rm -f "$root/etc/hostname" "$root/etc/resolv.conf"

{SEE_INSIDE.replace("{here}", here)}
{CHECK_FOLDERS.format(here=here)}
for archive in {here}/tree-*.tar {here}/files.tar; do
    [ -e "$archive" ] || continue
    said=$(tar --extract --same-permissions --touch --keep-directory-symlink --no-overwrite-dir \\
        --file "$archive" --directory "$root" 2>&1) || {{
        echo "the recipe's files do not fit into the root: $said" >{here}/complaint
        exit 1
    }}
done
{_presets(recipe).format(here=here) if options.presets else ""}
cpio=$(ls -d "$root/usr/bin/cpio" "$root/bin/cpio" 2>/dev/null | head -n 1) || true
if [ -n "$cpio" ]; then
    mv "$cpio" "$cpio.real"
    cp {here}/cpio "$cpio"
    chmod 755 "$cpio"
fi
{layout.take(recipe).format(here=here)}
sh -eu {here}/script "$root" {recipe.card.arch}
if [ -n "$cpio" ] && [ -e "$cpio.real" ]; then mv "$cpio.real" "$cpio"; fi
{TAKE_KERNEL.format(here=here) if recipe.card.firmware != "bios" else ""}
# Room for keys, which each store fills in its own copy.
entry=$(grep '^{recipe.card.login}:' "$root/etc/passwd")
IFS=: read -r _ _ uid gid _ home _ <<END
$entry
END
see_inside etc/ssh
see_inside "$home/.ssh"
rm -f "$root"/etc/ssh/ssh_host_*
rmdir "$root/etc/ssh" 2>/dev/null || true
if [ -d "$root/etc/ssh" ]; then
    mkdir -p "$root$home/.ssh"
    cp {here}/blank "$root$home/.ssh/authorized_keys"
    chmod 700 "$root$home/.ssh"
    chmod 600 "$root$home/.ssh/authorized_keys"
    chown -R "$uid:$gid" "$root$home/.ssh"
    cp {here}/blank "$root{root_files.HOST_KEY}"
    chmod 600 "$root{root_files.HOST_KEY}"
    echo "$home/.ssh/authorized_keys" >{here}/login-key
fi

cd "$root"
# mmdebstrap's own, which it would remove only after us: they keep services from starting while packages come in.
if [ -e sbin/start-stop-daemon.REAL ]; then mv sbin/start-stop-daemon.REAL sbin/start-stop-daemon; fi
# Each machine makes its own at its first boot.
if [ ! -L etc/machine-id ]; then : >etc/machine-id; fi
if [ -e var/lib/dbus/machine-id ]; then ln -sf /etc/machine-id var/lib/dbus/machine-id; fi
cd /

# The root without the /proc, /sys and /dev that are mounted on it while programs run in it.
mount --bind "$root" {here}/bare
{removal((*LEFT_BEHIND, *options.remove), here)}
mount -t tmpfs -o mode=755 dev {here}/bare/dev
mkdir {here}/bare/dev/pts {here}/bare/dev/shm
# What is newer than the image was made just now, and so was what is newer than this script: an epoch may be in the
# future.
find {here}/bare '(' -newermt "@$SOURCE_DATE_EPOCH" -o -newer {here}/hook ')' \\
    -exec touch -h -d "@$SOURCE_DATE_EPOCH" {{}} +
E2FSPROGS_FAKE_TIME=$SOURCE_DATE_EPOCH {shlex.join(map(str, make_fs))}
{layout.finish(recipe).format(here=here)}
umount {here}/bare/dev
umount {here}/bare
"""
