"""The shape of a machine, from the user's settings and the base image's card.

A shape is never part of an id: a step gives the same result on a larger machine, only sooner.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from obuild.errors import UsageError
from obuild.executors.qemu.arches import ARCHES
from obuild.executors.settings import Settings
from obuild.guests.profile import Card, arch_named
from obuild.host import process

Accel = Literal["kvm", "tcg"]


class Kernel(NamedTuple):
    """A Linux kernel that QEMU itself loads. The machine's console is added to `cmdline`."""

    image: Path
    initrd: Path | None
    cmdline: str


class Nvram(NamedTuple):
    """The file with UEFI's variables. Unless `kept`, the machine's changes to them are lost with it."""

    file: Path
    kept: bool = False


class Shape(NamedTuple):
    """`memory` is in bytes; `boot_time` is in seconds, for booting and for powering off.

    Without a `kernel`, the machine's firmware boots from the disk. UEFI uses the variables in `nvram`; without
    it, it begins with none and keeps them in memory. `tpm` is the folder with the state of a TPM 2.0. `warm` gives
    the machine the devices for saving and resuming. The guest sees the same devices whether it is saved or not.
    """

    arch: str = "x86_64"
    accel: Accel = "tcg"
    cpus: int = 2
    memory: int = 2 << 30
    firmware: str = "bios"
    boot_time: float = 180.0
    kernel: Kernel | None = None
    nvram: Nvram | None = None
    tpm: Path | None = None
    warm: bool = False

    @property
    def ram(self) -> int:
        """The memory that the machine gets, in bytes: a whole number of MiB."""
        return self.memory >> 20 << 20


def require_host(shape: Shape) -> None:
    """UsageError, naming the package, if this host lacks QEMU, firmware or a TPM for such a machine."""
    row = ARCHES[shape.arch]
    process.require(row.binary)
    if shape.tpm is not None:
        if not row.tpm:
            raise UsageError(f"a machine for {shape.arch} has no TPM")
        process.require("swtpm")
    if shape.firmware == "uefi":
        *flash, package = _uefi(shape.arch)
        files = flash if shape.nvram else [row.uefi_rom]
    elif shape.kernel is None:
        files, package = list(row.firmware[-1:]), row.firmware_package
    else:
        return
    for file in files:
        process.require_file(Path(file), package)


def _uefi(arch: str) -> tuple[str, str, str]:
    uefi = ARCHES[arch].uefi
    if uefi is None:
        known = ", ".join(name for name, row in ARCHES.items() if row.uefi)
        raise UsageError(f"obuild cannot boot {arch} machines by UEFI", hint=f"it can for {known}")
    return uefi


def shape_for(settings: Settings, card: Card, accel: Accel, nvram: Nvram | None = None) -> Shape:
    """Return the machine for a base image with this card. UsageError if its guest cannot run like that."""
    arch = arch_named(settings.arch or card.arch)
    if card.firmware == "uefi":
        _uefi(arch)
    why_not = _why_not_warm(arch, settings.os or card.os, card, nvram)
    if why_not and settings.vm == "warm":
        raise UsageError(f"this guest cannot be kept warm: {why_not}", hint="--vm auto, or --vm boot")
    return Shape(
        arch=arch,
        accel=accel,
        cpus=settings.cpus,
        memory=settings.memory_for(card),
        firmware=card.firmware,
        boot_time=settings.boot_time,
        nvram=nvram,
        warm=not why_not,
    )


def _why_not_warm(arch: str, os: str, card: Card, nvram: Nvram | None) -> str:
    if os != "linux":
        return "it does not run Linux"
    if nvram is not None:
        return "its UEFI has a memory of its own for variables, which is not saved"
    if card.warm == "no":
        return "its base image's card says so"
    if not ARCHES[arch].genid:
        return f"nothing tells a guest on {arch} that it was resumed, so two would have the same random numbers"
    return ""
