"""A base image from Debian packages: unpacked by mmdebstrap, made bootable without mounting anything.

mmdebstrap fills a folder; while it still stands, inside the same namespace, mke2fs copies it into the
partition of a raw disk. GRUB goes where the partition leaves room. So a plain user can make an image,
nothing is ever attached to a loop device, and nothing is left behind when we are interrupted.

GRUB is there for x86_64 only. Other machines have their kernel loaded by QEMU (firmware = "kernel" in the
card): it is taken out of the new root and laid beside the image, with its initial RAM disk.

    byte 0          boot.img, GRUB's 440 bytes of the MBR; it loads sector 1
    byte 440        disk signature and partition table, by sfdisk
    byte 512        core.img: GRUB's own drivers; loads /boot/grub/grub.cfg
    byte 1 MiB      the one partition: ext4
"""

from __future__ import annotations

import io
import os
import re
import shlex
import tarfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from obuild.bases import recipe
from obuild.bases.recipe import File, Recipe
from obuild.errors import ObuildError, UsageError
from obuild.guests.profile import INITRD, KERNEL
from obuild.host import locks, process
from obuild.host.fs import discard, fsync, owned_folder
from obuild.host.qemu_img import copy, pack
from obuild.store import parts

SECTOR = 512
PARTITION_START = 1 << 20

#: The part of the MBR that is code; the disk's signature and the partition table follow.
BOOT_CODE = 440

#: The archive itself: the name finds a mirror nearby.
MIRROR = "http://deb.debian.org/debian"

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
GRUB = Path("/usr/lib/grub/i386-pc")
GRUB_MODULES = ("biosdisk", "part_msdos", "ext2", "linux16", "normal")

#: Debian's names for architectures.
DEBIAN_ARCHES = {"x86_64": "amd64", "aarch64": "arm64", "ppc64le": "ppc64el"}

#: What every mke2fs shall make: no feature that GRUB 2.06, an older kernel or an older e2fsck does not know.
MKE2FS_CONFIG = """\
[defaults]
	base_features = sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr
	blocksize = 4096
	inode_size = 256
	inode_ratio = 16384
[fs_types]
	ext4 = {
		features = has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize
	}
"""

#: Ids of a disk are made from what it is made of, so that two runs differ in as little as possible.
_NAMESPACE = uuid.UUID("5f0f4f0c-9d0b-4b43-8d1f-0b1d3e6d9a11")

#: Where to work if the store's folder is for its owner alone, and what the folder there is called.
VAR_TMP = Path("/var/tmp")
MAKING = "obuild-making"
_MAKING = re.compile(rf"[0-9]+-{MAKING}")

Say = Callable[[str], None]


def make(recipe: Recipe, out: Path, *, public_key: str, say: Say) -> None:
    """Make the image of `recipe` at `out`, a qcow2 that `public_key`'s owner can log in to.

    `out` appears complete or not at all; whatever else was written is gone afterwards, however it ends.
    """
    _check_host(recipe)
    with ExitStack() as stack:
        beside = stack.enter_context(_scratch(out.parent))
        # As a plain user, mmdebstrap works under another uid, which may not enter a private home folder.
        reached = os.geteuid() == 0 or all(above.stat().st_mode & 0o001 for above in beside.resolve().parents)
        work = beside if reached else stack.enter_context(_scratch(VAR_TMP.resolve()))
        say(f"{recipe.name}: installing {len(recipe.packages)} packages of Debian {recipe.suite}")
        disk = _bootstrap(recipe, work, public_key)
        if recipe.card.firmware == "bios":
            say(f"{recipe.name}: adding the boot loader")
        make_bootable(recipe, disk, work)
        say(f"{recipe.name}: packing the image")
        packed = beside / "packed.qcow2"
        pack(disk, packed)
        fsync(packed)
        if recipe.card.firmware == "kernel":
            for suffix in (KERNEL, INITRD):
                copy(work / f"boot{suffix}", beside / suffix)
                (beside / suffix).chmod(0o644)
                fsync(beside / suffix)
                (beside / suffix).replace(out.with_suffix(suffix))
        packed.replace(out)


def disk_id(made: Recipe) -> uuid.UUID:
    """The id of the root file system; its first 32 bits are also the disk's signature."""
    return uuid.uuid5(_NAMESPACE, recipe.digest(made))


def bootstrap_argv(recipe: Recipe, hook: Path, *, root: bool) -> list[str | Path]:
    """The command that unpacks the packages and has `hook` make a disk of them.

    If no mirror is named, mmdebstrap takes Debian's own, with the suites of updates and of security fixes that
    a stable release has; if one is, that alone. The guest's sources.list says the same.
    """
    # "extract" configures nothing, so it has no later hook to offer.
    when = "extract" if recipe.variant == "extract" else "customize"
    # Root's mounts and processes must not outlive us: they end with this namespace, which ends with `unshare`.
    shell = ["unshare", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child", "--"] if root else []
    return [
        *shell,
        "mmdebstrap",
        f"--mode={'root' if root else 'unshare'}",
        f"--variant={recipe.variant}",
        "--format=null",
        # The hook cleans up, before the disk is made and not after. Who signed what needs no finding out.
        "--skip=cleanup,check/signed-by",
        f"--keyring={KEYRING}",
        f"--architectures={DEBIAN_ARCHES.get(recipe.card.arch, recipe.card.arch)}",
        '--aptopt=Acquire::Languages "none"',
        "--dpkgopt=force-unsafe-io",
        f"--include={','.join(recipe.packages)}",
        f"--setup-hook={MERGE_USR}",
        f"--{when}-hook={hook}",
        recipe.suite,
        "-",
        *(() if recipe.updates else (MIRROR,)),
    ]


#: Packages for a merged /usr do not bring the links themselves.
MERGE_USR = 'for dir in bin sbin lib lib64; do mkdir -p "$1/usr/$dir" && ln -sT "usr/$dir" "$1/$dir"; done'


#: /vmlinuz and /initrd.img are links to the kernel. What the guest is booted from, it need not hold as well.
TAKE_KERNEL = f"""\
cat "$root/vmlinuz" >{{here}}/boot{KERNEL}
cat "$root/initrd.img" >{{here}}/boot{INITRD}
rm -r "$root/vmlinuz" "$root/initrd.img" "$root"/boot/*
"""


def hook_text(recipe: Recipe, work: Path) -> str:
    """The script that mmdebstrap runs when the packages are in place: the new root becomes a file system.

    It runs where owners are what the guest shall see, and finds its inputs in `work`.
    """
    here = shlex.quote(str(work))
    return f"""\
#!/bin/sh
set -eu
root=$1
tar --extract --same-permissions --keep-directory-symlink --file {here}/files.tar --directory "$root"
sh -eu {here}/script "$root" {recipe.card.arch}
{TAKE_KERNEL.format(here=here) if recipe.card.firmware == "kernel" else ""}
entry=$(grep '^{recipe.card.login}:' "$root/etc/passwd")
IFS=: read -r _ _ uid gid _ home _ <<END
$entry
END
mkdir -p "$root$home/.ssh"
cp {here}/authorized_keys "$root$home/.ssh/authorized_keys"
chmod 700 "$root$home/.ssh"
chmod 600 "$root$home/.ssh/authorized_keys"
chown -R "$uid:$gid" "$root$home/.ssh"

cd "$root"
rm -rf etc/apt/apt.conf.d/00mmdebstrap var/lib/apt/lists/* var/cache/apt/* var/log/apt/* \
    var/log/dpkg.log var/log/alternatives.log var/log/bootstrap.log run/* tmp/* var/tmp/*
: >etc/machine-id
cd /

# The root without the /proc, /sys and /dev that are mounted on it while programs run in it.
mount --bind "$root" {here}/bare
{shlex.join(map(str, mke2fs_argv(recipe, work)))}
umount {here}/bare
"""


def mke2fs_argv(recipe: Recipe, work: Path) -> list[str | Path]:
    """The command that makes the root file system in its place on the disk."""
    identity = disk_id(recipe)
    extended = (
        f"offset={PARTITION_START}",
        # Written now, where it costs nothing: else the guest's kernel does it, again in every layer.
        "lazy_itable_init=0,lazy_journal_init=0",
        f"hash_seed={identity}",
    )
    return [
        *("env", f"MKE2FS_CONFIG={work}/mke2fs.conf", "mke2fs", "-q", "-F"),
        *("-t", "ext4"),
        *("-L", "root"),
        *("-U", str(identity)),
        *("-m", "1"),
        *("-E", ",".join(extended)),
        *("-d", work / "bare"),
        work / "disk.raw",
        f"{(recipe.size - PARTITION_START) // 1024}k",
    ]


def partition_script(*, signature: int, size: int) -> str:
    """What sfdisk reads: one bootable Linux partition up to the end of a disk of `size` bytes."""
    start = PARTITION_START // SECTOR
    return (
        f"label: dos\nlabel-id: {signature:#010x}\nunit: sectors\n"
        f"start={start}, size={size // SECTOR - start}, type=83, bootable\n"
    )


def grub_cfg(recipe: Recipe) -> str:
    """GRUB's configuration: no menu, no wait. /vmlinuz and /initrd.img are links to the newest kernel."""
    return (
        f"linux16 /vmlinuz root=UUID={disk_id(recipe)} rw console=ttyS0 {recipe.cmdline}\n"
        "initrd16 /initrd.img\n"
        "boot\n"
    )


def grub_argv(core: Path) -> list[str | Path]:
    """The command that makes GRUB's core image, with all the drivers it needs to read its configuration."""
    return [
        *("grub-mkimage", "--format=i386-pc", f"--directory={GRUB}"),
        # The first partition of whichever disk the BIOS started.
        "--prefix=(,msdos1)/boot/grub",
        f"--output={core}",
        *GRUB_MODULES,
    ]


def install_grub(disk: Path, *, boot: bytes, core: bytes) -> None:
    """Write GRUB around the partition table of `disk`.

    Nothing in either image needs patching: boot.img loads sector 1 of the disk it was started from, and
    the first sector of core.img expects the rest behind itself.
    """
    if SECTOR + len(core) > PARTITION_START:
        raise UsageError(f"GRUB's core image has {len(core)} bytes and does not fit before the partition")
    with disk.open("r+b") as file:
        file.write(boot[:BOOT_CODE])
        file.seek(SECTOR)
        file.write(core)


def _check_host(recipe: Recipe) -> None:
    """Complain about all that is missing before anything is downloaded."""
    if recipe.card.firmware == "bios" and recipe.card.arch != "x86_64":
        raise UsageError(
            f"{recipe.name}: a boot loader can be put on a disk for x86_64 only",
            hint='write firmware = "kernel" under [card]: then QEMU loads the kernel',
        )
    grub = recipe.card.firmware == "bios"
    for program in ("mmdebstrap", "mke2fs", "sfdisk", *(["grub-mkimage"] if grub else []), "qemu-img"):
        process.require(program)
    for program in recipe.tools:
        process.require(program)
    process.require_file(KEYRING, "debian-archive-keyring")
    if grub:
        process.require_file(GRUB / "boot.img", "grub-pc-bin")


def _bootstrap(recipe: Recipe, work: Path, public_key: str) -> Path:
    """Unpack the packages and make a partition of them; returns the raw disk, not yet bootable."""
    _write_inputs(recipe, work, public_key)
    disk = work / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(recipe.size)
    disk.chmod(0o666)
    for suffix in (KERNEL, INITRD):
        (work / f"boot{suffix}").touch()
        (work / f"boot{suffix}").chmod(0o666)
    chroots = work / "tmp"
    chroots.mkdir()
    chroots.chmod(0o1777)
    (work / "bare").mkdir()
    process.run(
        bootstrap_argv(recipe, work / "hook", root=os.geteuid() == 0),
        env={"TMPDIR": str(chroots), "LC_ALL": "C.UTF-8"},
    )
    return disk


def _write_inputs(recipe: Recipe, work: Path, public_key: str) -> None:
    """What the hook reads. It may be another user that reads, so nothing here is secret."""
    grub = recipe.card.firmware == "bios"
    cfg = [File("/boot/grub/grub.cfg", 0o644, grub_cfg(recipe))] if grub else []
    (work / "files.tar").write_bytes(archive((*recipe.files, *cfg)))
    (work / "script").write_text(recipe.script, encoding="utf-8")
    (work / "mke2fs.conf").write_text(MKE2FS_CONFIG, encoding="utf-8")
    (work / "authorized_keys").write_text(public_key.strip() + "\n", encoding="utf-8")
    hook = work / "hook"
    hook.write_text(hook_text(recipe, work), encoding="utf-8")
    hook.chmod(0o755)


def archive(files: tuple[File, ...]) -> bytes:
    """A tar of `files`, all root's. It brings no folders, so those that exist keep their modes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for file in files:
            data = file.text.encode()
            entry = tarfile.TarInfo(file.path.lstrip("/"))
            entry.mode, entry.size = file.mode, len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def make_bootable(made: Recipe, disk: Path, work: Path) -> None:
    """Give `disk` a partition table, and GRUB if it is to boot by itself; the partition stays as it is."""
    script = partition_script(signature=disk_id(made).fields[0], size=disk.stat().st_size)
    # Never wipe: sfdisk would take the file system for a leftover of an older disk.
    process.run(["sfdisk", "--quiet", "--wipe=never", "--wipe-partitions=never", disk], input=script.encode())
    if made.card.firmware != "bios":
        return
    core = work / "core.img"
    process.run(grub_argv(core))
    install_grub(disk, boot=(GRUB / "boot.img").read_bytes(), core=core.read_bytes())


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A new folder in `folder`, removed with all it holds however the block ends.

    What a process of ours has left there that was killed goes, too: nobody else sweeps outside the store.
    """
    for left in parts.entries(folder, _MAKING):
        if left.stat().st_uid == os.geteuid():
            with locks.folder_lock(left, wait=False) as dead:
                if dead:
                    _remove(left)
    with owned_folder(folder, MAKING) as path:
        try:
            # Others may go through, to names they know.
            path.chmod(0o711)
            yield path
        finally:
            _remove(path)


def _remove(path: Path) -> None:
    with suppress(ObuildError):
        discard(path)
    if path.exists():
        # Left by an mmdebstrap that was killed: files of other uids, which only its own namespace can remove.
        process.run(["mmdebstrap", "--unshare-helper", "rm", "-rf", *(path / "tmp").iterdir()])
        discard(path)
