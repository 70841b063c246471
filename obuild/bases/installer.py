"""A base image from an installer, which boots from its ISO or kernel and installs onto an empty disk by itself.

That it powered off says little, so the disk must have a partition then, and a first boot must answer SSH with the
login of the card, unless the recipe says that nobody logs in there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from obuild.bases import disk_layout, kind, media, remote, unattended
from obuild.bases.kind import File, Making, Recipe
from obuild.bases.media import Seed
from obuild.bases.remote import Remote
from obuild.bases.sources import Sources
from obuild.bases.table import Table
from obuild.bases.unattended import Ends, Verdict
from obuild.errors import UsageError
from obuild.executors.qemu import devices
from obuild.executors.qemu.arches import ARCHES
from obuild.executors.qemu.devices import Bus
from obuild.executors.qemu.shape import Kernel, Nvram, Shape
from obuild.guests.profile import NVRAM, Card
from obuild.host import process, qemu_img
from obuild.host.fs import discard, fsync
from obuild.host.qemu_img import Image

Verify = Literal["ssh", "none"]

#: The defaults of `timeout` and `memory`.
TIMEOUT = "2h"
MEMORY = "2G"


@dataclass(frozen=True, slots=True)
class Options:
    """What [installer] says. Of `iso` and `kernel` there is one at least; `initrd`, `cmdline` and `files` are the
    kernel's. `memory` is in bytes, for the time of the installation; `timeout` is in seconds.
    """

    iso: Remote | None
    kernel: Remote | None
    initrd: Remote | None
    cmdline: str
    files: tuple[File, ...]
    seeds: tuple[Seed, ...]
    memory: int
    ends: Ends
    verify: Verify
    timeout: float


def parse(table: Table, sources: Sources, card: Card) -> Options:
    """See `Kind.parse`."""
    kernels = ("initrd", "cmdline", "file")
    table.only("iso", "kernel", *kernels, "seed", "memory", "ends", "verify", "timeout")
    if card.firmware == "kernel":
        raise UsageError(f"{table.where}: what is installed boots by itself", hint='firmware = "bios" or "uefi"')
    if "iso" not in table and "kernel" not in table:
        raise UsageError(f"{table.where}: there is nothing to boot", hint="[installer.iso] or [installer.kernel]")
    for key in kernels:
        if key in table and "kernel" not in table:
            raise table.error(key, f"{key} is of use only with [installer.kernel]")
    if "file" in table and "initrd" not in table:
        raise table.error("file", "files are added to an initrd, and there is none")
    reboots = table.choice("ends", ("poweroff", "reboot"), default="poweroff") == "reboot"
    ends: Ends = "reboot" if reboots else "poweroff"
    options = Options(
        iso=_remote(table, "iso", sources),
        kernel=_remote(table, "kernel", sources),
        initrd=_remote(table, "initrd", sources),
        cmdline=table.line("cmdline"),
        files=kind.files(table),
        seeds=tuple(media.parse(each, sources, card.arch, ends=ends) for each in table.tables("seed")),
        memory=table.size("memory", smallest=32 << 20, default=MEMORY),
        ends=ends,
        verify="none" if table.choice("verify", ("ssh", "none"), default="ssh") == "none" else "ssh",
        timeout=table.duration("timeout", default=TIMEOUT),
    )
    media.check_cdroms(table, sum(each.bus == "cdrom" for each in options.seeds) + (options.iso is not None))
    return options


def _remote(table: Table, key: str, sources: Sources) -> Remote | None:
    return remote.parse(table.table(key), sources) if key in table else None


def unpinned(recipe: Recipe) -> str:
    """See `Kind.unpinned`."""
    options: Options = recipe.options
    wanted = (options.iso, options.kernel, options.initrd)
    unknown = [each.urls[0] for each in wanted if each and not each.digest]
    return f"the digest of {unknown[0]} is not known" if unknown else ""


def make(recipe: Recipe, out: Path, making: Making) -> Card:
    """See `Kind.make`."""
    options: Options = recipe.options
    unattended.check_host(recipe.card)
    if any(each.bus == "floppy" for each in options.seeds):
        process.require("mformat")
    work = out.parent / "work"
    work.mkdir()
    try:
        disk, packed = work / "disk.qcow2", work / "packed.qcow2"
        shape = unattended.shape_of(recipe.card, making, memory=options.memory, boot_time=unattended.PROOF_TIME)
        shape = replace(shape, nvram=new_nvram(shape, work))
        kernel, read = gather(options, making, work)
        qemu_img.create_empty(disk, size=recipe.size)
        making.say(f"{recipe.name}: installing; the guest does it alone")
        unattended.run(
            recipe.name,
            replace(shape, kernel=kernel),
            disk,
            making,
            extra=media_argv(shape.arch, read),
            timeout=options.timeout,
            ends=options.ends,
            screen=True,
            judge=lambda running, problem: judge(problem),
        )
        check_installed(recipe, disk, work)
        if options.verify == "ssh":
            proof = replace(shape, nvram=replace(shape.nvram, kept=False) if shape.nvram else None)
            unattended.prove_ssh(recipe.name, proof, disk, making, login=recipe.card.login, work=work)
        making.say(f"{recipe.name}: packing the image")
        qemu_img.flat_copy(disk, packed)
        fsync(packed)
        if shape.nvram:
            shape.nvram.file.replace(out.with_suffix(NVRAM))
        packed.replace(out)
    finally:
        discard(work)
    return recipe.card


def new_nvram(shape: Shape, work: Path) -> Nvram | None:
    """Variables of its own for a machine with UEFI: the installer says there what is to be booted."""
    uefi = ARCHES[shape.arch].uefi
    if shape.firmware != "uefi" or uefi is None:
        return None
    file = work / "nvram"
    qemu_img.copy(Path(uefi[1]), file)
    file.chmod(0o644)
    return Nvram(file, kept=True)


def gather(options: Options, making: Making, work: Path) -> tuple[Kernel | None, list[tuple[Path, Bus]]]:
    """Fetch what is booted, and make the seeds. The ISO is the first of the media, if there is one."""
    read: list[tuple[Path, Bus]] = []
    if options.iso:
        read.append((linked(options.iso, work / "installer.iso", making), "cdrom"))
    kernel = None
    if options.kernel:
        image = linked(options.kernel, work / "kernel", making)
        initrd = None
        if options.initrd:
            initrd = work / "initrd"
            qemu_img.copy(making.fetch(options.initrd), initrd)
            initrd.chmod(0o644)
            if options.files:
                media.add_to_initrd(initrd, options.files, making.public_key)
        cmdline = media.with_key(options.cmdline.encode(), making.public_key).decode()
        kernel = Kernel(image, initrd, cmdline)
    return kernel, read + media.write(options.seeds, making.public_key, work)


def linked(wanted: Remote, path: Path, making: Making) -> Path:
    """A file that a recipe names, fetched and linked to `path`."""
    path.hardlink_to(making.fetch(wanted))  # it stays while we need it, whoever prunes
    return path


def media_argv(arch: str, read: list[tuple[Path, Bus]]) -> devices.Argv:
    """The media of a machine. CDs come first, for their numbers are their places; the ISO may be booted."""
    ordered = sorted(read, key=lambda each: each[1] != "cdrom")
    line: devices.Argv = [*devices.GIVE_UP] if arch == "x86_64" else []
    for number, (path, bus) in enumerate(ordered, 1):
        line += devices.medium(arch, number, path, bus, boot=bus == "cdrom" and path == read[0][0])
    return line


def judge(problem: str) -> Verdict:
    """What to add if a guest did not end as it should."""
    if "rebooted" not in problem:
        return Verdict(problem)
    advice = (
        'it found nothing to boot, or it reboots when it is done: then write ends = "reboot" under [installer]'
    )
    return Verdict(problem, [advice])


def check_installed(recipe: Recipe, disk: Path, work: Path) -> None:
    """UsageError if there is nothing on the disk after an installation."""
    head = disk_layout.head(Image(disk, "qcow2", recipe.size), work)
    if not disk_layout.partition_types(head):
        raise UsageError(
            f"{recipe.name}: the installer ended and left no partition on the disk",
            hint="does its answer file name the disk (/dev/vda), and does the ISO boot? --watch shows its screen",
        )
