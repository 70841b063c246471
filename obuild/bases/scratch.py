"""A base image from Debian packages: unpacked by mmdebstrap, made bootable without mounting anything.

mmdebstrap fills a folder; while it still stands, inside the same namespace, mke2fs copies it into the partition of
a raw disk. So a plain user can make an image, and nothing is left behind when we are interrupted.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote

from obuild.bases import ext4, kind, mbr_grub, mmdebstrap_hook, work_folder
from obuild.bases.kind import File, Making, Recipe
from obuild.bases.sources import Sources
from obuild.bases.table import Table
from obuild.errors import UsageError
from obuild.guests.profile import DEBIAN_ARCHES, INITRD, KERNEL, Card
from obuild.host import process
from obuild.host.fs import fsync
from obuild.host.qemu_img import copy, pack

#: The archive itself: the name finds a mirror nearby.
MIRROR = "http://deb.debian.org/debian"

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

#: The date for programs that ask for one while packages are configured. The image's own is known only later.
EPOCH = 1_672_531_200

VARIANTS = ("extract", "custom", "essential", "apt", "minbase", "required", "important", "standard")

#: The partition that is the root, as the guest's kernel names it.
ROOT = "/dev/vda1"

_SUITE = re.compile(r"[a-z0-9][a-z0-9._-]*")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9.+-]+")


@dataclass(frozen=True, slots=True)
class Options:
    """What [scratch] says.

    `suite` is any name of a Debian release; without `updates` the suites of updates and of security fixes are left
    out. `variant` is how mmdebstrap begins: "extract" unpacks and configures nothing. `packages` end with those of
    the kernel, `cmdline` is for it, besides root= and the console. `script` is run by /bin/sh on the host, calls
    `tools`, and gets the new root as $1, with `files` in it, and its architecture as $2; nothing is booted.
    """

    suite: str
    updates: bool
    variant: str
    packages: tuple[str, ...]
    cmdline: str
    tools: tuple[str, ...]
    files: tuple[File, ...]
    script: str


def parse(table: Table, sources: Sources, card: Card) -> Options:
    """See `Kind.parse`."""
    table.only("suite", "updates", "variant", "packages", "kernel", "cmdline", "tools", "file", "script")
    return Options(
        suite=table.match("suite", _SUITE, hint='write it like "bookworm"'),
        updates=table.flag("updates", default=True),
        variant=table.choice("variant", VARIANTS, default="minbase"),
        packages=_packages(table, "packages") + _packages(table, "kernel"),
        cmdline=table.line("cmdline"),
        tools=_packages(table, "tools"),
        files=kind.files(table),
        script=table.text("script", default=""),
    )


def _packages(table: Table, key: str) -> tuple[str, ...]:
    for package in (packages := table.strings(key)):
        if not _PACKAGE.fullmatch(package):
            raise table.error(
                key,
                f"{key}: {package!r} is not the name of a package",
                hint="names of Debian packages are lower case: a-z, 0-9, plus, dash, dot",
            )
    return packages


def unpinned(recipe: Recipe) -> str:
    """See `Kind.unpinned`."""
    return "" if recipe.packages else "nobody has pinned its packages; obuild base make --lock does"


def make(recipe: Recipe, out: Path, making: Making) -> Card:
    """See `Kind.make`."""
    options: Options = recipe.options
    if making.watch:
        raise UsageError("--watch: no guest runs while a base image of this kind is made")
    _check_host(recipe)
    with ExitStack() as stack:
        beside = stack.enter_context(work_folder.folder_in(out.parent))
        # As a plain user, mmdebstrap works under another uid, which may not enter a private home folder.
        reached = os.geteuid() == 0 or all(above.stat().st_mode & 0o001 for above in beside.resolve().parents)
        work = beside if reached else stack.enter_context(work_folder.folder_in(work_folder.VAR_TMP.resolve()))
        making.say(f"{recipe.name}: installing {len(options.packages)} packages of Debian {options.suite}")
        disk = _bootstrap(recipe, work)
        making.packages(_packages_in(work))
        if recipe.card.firmware == "bios":
            making.say(f"{recipe.name}: adding the boot loader")
        mbr_grub.make_bootable(recipe, disk, work)
        making.say(f"{recipe.name}: packing the image")
        packed = beside / "packed.qcow2"
        pack(disk, packed)
        fsync(packed)
        card = _with_key_blocks(recipe.card, work)
        if card.firmware == "kernel":
            card = replace(card, cmdline=f"root={ROOT} rw {options.cmdline}".strip())
            for suffix in (KERNEL, INITRD):
                copy(work / f"boot{suffix}", beside / suffix)
                (beside / suffix).chmod(0o644)
                fsync(beside / suffix)
                (beside / suffix).replace(out.with_suffix(suffix))
        packed.replace(out)
    return card


def bootstrap_argv(recipe: Recipe, hook: Path, *, root: bool) -> list[str | Path]:
    """The command that unpacks the packages and has `hook` make a disk of them.

    If no mirror is named, mmdebstrap takes Debian's own, with the suites of updates and of security fixes that
    a stable release has; if one is, that alone. The guest's sources.list says the same.
    """
    options: Options = recipe.options
    # "extract" configures nothing, so it has no later hook to offer.
    when = "extract" if options.variant == "extract" else "customize"
    # Root's mounts and processes must not outlive us: they end with this namespace, which ends with `unshare`.
    shell = ["unshare", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child", "--"] if root else []
    return [
        *shell,
        "mmdebstrap",
        f"--mode={'root' if root else 'unshare'}",
        f"--variant={options.variant}",
        "--format=null",
        # The hook cleans up, before the disk is made and not after. Who signed what needs no finding out.
        "--skip=cleanup,check/signed-by,essential/unlink",
        f"--keyring={KEYRING}",
        f"--architectures={DEBIAN_ARCHES.get(recipe.card.arch, recipe.card.arch)}",
        '--aptopt=Acquire::Languages "none"',
        # The hook says which they were.
        '--aptopt=APT::Keep-Downloaded-Packages "true"',
        "--dpkgopt=force-unsafe-io",
        f"--include={','.join(options.packages)}",
        f"--setup-hook={mmdebstrap_hook.MERGE_USR}",
        f"--{when}-hook={hook}",
        options.suite,
        "-",
        *(() if options.updates else (MIRROR,)),
    ]


def _bootstrap(recipe: Recipe, work: Path) -> Path:
    """Unpack the packages and make a partition of them; returns the raw disk, not yet bootable."""
    _write_inputs(recipe, work)
    disk = work / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(recipe.size)
    for name in (disk.name, "epoch", "packages", "login-key", f"boot{KERNEL}", f"boot{INITRD}"):
        (work / name).touch()
        (work / name).chmod(0o666)
    chroots = work / "tmp"
    chroots.mkdir()
    chroots.chmod(0o1777)
    (work / "bare").mkdir()
    (work / "bare").chmod(0o755)
    process.run(
        bootstrap_argv(recipe, work / "hook", root=os.geteuid() == 0),
        env={"TMPDIR": str(chroots), "LC_ALL": "C.UTF-8", "TZ": "UTC", "SOURCE_DATE_EPOCH": str(EPOCH)},
    )
    epoch = int((work / "epoch").read_text())
    ext4.set_times(disk, start=mbr_grub.PARTITION_START, epoch=epoch)
    return disk


def _packages_in(work: Path) -> dict[str, str]:
    """The digest of each package in the image, by NAME_VERSION_ARCH."""
    found = (line.split("  ") for line in (work / "packages").read_text().splitlines())
    return {unquote(name.removesuffix(".deb")): f"sha256:{digest}" for digest, name in found}


def _with_key_blocks(card: Card, work: Path) -> Card:
    """The card that says where on the disk a store puts its keys; as it is if nobody can log in."""
    login_key = (work / "login-key").read_text().strip()
    if not login_key:
        return card
    where = [
        ext4.key_block(work / "disk.raw", path, start=mbr_grub.PARTITION_START)
        for path in (login_key, mmdebstrap_hook.HOST_KEY)
    ]
    return replace(card, authorized_keys=where[0], host_key=where[1])


def _write_inputs(recipe: Recipe, work: Path) -> None:
    """What the hook reads. It may be another user that reads, so nothing here is secret."""
    options: Options = recipe.options
    grub = recipe.card.firmware == "bios"
    cfg = [File("/boot/grub/grub.cfg", 0o644, mbr_grub.grub_cfg(recipe, options.cmdline))] if grub else []
    (work / "files.tar").write_bytes(archive((*options.files, *cfg)))
    (work / "files.tar").chmod(0o644)
    texts = {**mmdebstrap_hook.inputs(), "script": options.script, "hook": mmdebstrap_hook.text(recipe, work)}
    for name, text in texts.items():
        (work / name).write_text(text, encoding="utf-8")
        (work / name).chmod(0o755 if name == "hook" else 0o644)


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


def _check_host(recipe: Recipe) -> None:
    """Complain about all that is missing before anything is downloaded."""
    mbr_grub.check_host(recipe)
    for program in ("mmdebstrap", "qemu-img", *ext4.PROGRAMS, *recipe.options.tools):
        process.require(program)
    process.require_file(KEYRING, "debian-archive-keyring")
