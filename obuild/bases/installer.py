"""Make a base image with a system's own installer, which boots from its ISO or kernel and needs no input.

A power-off proves little, so the disk must then have a partition, and the installed system must answer SSH with
the card's login, unless the recipe says `verify = "none"`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from obuild.bases import installation, kind, media, remote, unattended, work_folder
from obuild.bases.kind import File, Making, Recipe
from obuild.bases.media import Seed
from obuild.bases.remote import Remote
from obuild.bases.sources import Sources
from obuild.bases.table import Table
from obuild.bases.unattended import Ends, Verdict
from obuild.errors import UsageError
from obuild.executors.qemu.devices import Bus
from obuild.executors.qemu.shape import Kernel
from obuild.guests.profile import Card
from obuild.host import process, qemu_img

Verify = Literal["ssh", "none"]

#: The defaults of `timeout` and `memory`.
TIMEOUT = "2h"
MEMORY = "2G"


@dataclass(frozen=True, slots=True)
class Options:
    """The table [installer]. There is an `iso`, a `kernel`, or both; `initrd`, `cmdline`, `files` need a kernel.

    `memory`, in bytes, is that of the machine during the installation; `timeout` is in seconds.
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
        raise UsageError(
            f"{table.where}: the installed system boots by itself", hint='firmware = "bios" or "uefi"'
        )
    if "iso" not in table and "kernel" not in table:
        raise UsageError(f"{table.where}: there is nothing to boot", hint="[installer.iso] or [installer.kernel]")
    for key in kernels:
        if key in table and "kernel" not in table:
            raise table.error(key, f"{key} needs [installer.kernel]")
    if "file" in table and "initrd" not in table:
        raise table.error("file", "file needs [installer.initrd], to which the files are added")
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
    return remote.unpinned(options.iso, options.kernel, options.initrd)


def seeds(recipe: Recipe, public_key: str, folder: Path) -> tuple[Path, ...]:
    """See `Kind.seeds`."""
    return tuple(path for path, _ in media.write(recipe.options.seeds, public_key, folder))


def make(recipe: Recipe, out: Path, making: Making) -> Card:
    """See `Kind.make`."""
    options: Options = recipe.options
    unattended.check_host(recipe.card)
    if any(each.bus == "floppy" for each in options.seeds):
        process.require("mformat")
    with work_folder.folder_in(out.parent) as work:
        kernel, read = gather(options, making, work)
        making.say(f"{recipe.name}: installing; this needs no input")
        return installation.install(
            recipe,
            out,
            making,
            work=work,
            read=read,
            kernel=kernel,
            memory=options.memory,
            timeout=options.timeout,
            ends=options.ends,
            verify=options.verify == "ssh",
            judge=lambda running, problem: judge(problem),
        )


def gather(options: Options, making: Making, work: Path) -> tuple[Kernel | None, list[tuple[Path, Bus]]]:
    """Fetch the kernel and the ISO, and make the seeds. The ISO, if there is one, is the first of the media."""
    read: list[tuple[Path, Bus]] = []
    if options.iso:
        read.append((unattended.fetched(options.iso, work / "installer.iso", making), "cdrom"))
    kernel = None
    if options.kernel:
        image = unattended.fetched(options.kernel, work / "kernel", making)
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


def judge(problem: str) -> Verdict:
    """Add advice if the guest rebooted."""
    if "rebooted" not in problem:
        return Verdict(problem)
    advice = (
        'either it found nothing to boot, or it reboots at its end: then write ends = "reboot" under [installer]'
    )
    return Verdict(problem, [advice])
