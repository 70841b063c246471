"""How big a machine is and what QEMU is told of it: one table row for each architecture.

A shape is never part of an id: a step gives the same result on a larger machine, only sooner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from obuild.card import OSES, Card
from obuild.errors import UsageError

Accel = Literal["kvm", "tcg"]

DEFAULT_MEMORY = 2 << 30
SMALLEST_MEMORY = 32 << 20


@dataclass(frozen=True, slots=True)
class Shape:
    """`memory` is in bytes; `boot_time` in seconds, for booting and for powering off."""

    arch: str = "x86_64"
    accel: Accel = "tcg"
    cpus: int = 2
    memory: int = 2 << 30
    firmware: str = "bios"
    boot_time: float = 180.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What the user asked of machines; "" and 0 leave it to the base image's card. `memory` is in bytes."""

    accel: str = "auto"
    memory: int = 0
    cpus: int = 2
    boot_time: float = 180.0
    os: str = ""
    arch: str = ""

    def checked(self) -> Settings:
        """Itself. UsageError for what no machine can be."""
        if self.accel not in ("auto", "kvm", "tcg"):
            raise UsageError(f"unknown accelerator {self.accel!r}", hint="--qemu-accel auto, kvm or tcg")
        if self.memory and self.memory < SMALLEST_MEMORY:
            raise UsageError(f"--qemu-memory: a machine needs at least {SMALLEST_MEMORY >> 20}M")
        if self.os not in ("", *OSES):
            raise UsageError(f"unknown guest OS {self.os!r}", hint=f"--qemu-guest-os {', '.join(OSES)}")
        if self.arch:
            arch_named(self.arch)
        return self

    def shape(self, card: Card, accel: Accel) -> Shape:
        """The machine for a base image with this card. UsageError if its guest cannot be run."""
        return Shape(
            arch=arch_named(self.arch or card.arch),
            accel=accel,
            cpus=self.cpus,
            memory=self.memory or max(DEFAULT_MEMORY, card.memory),
            firmware=card.firmware,
            boot_time=self.boot_time,
        )


@dataclass(frozen=True, slots=True)
class Arch:
    """What differs between guest architectures."""

    binary: str
    machine: str
    cpu_kvm: str
    cpu_tcg: str
    console: str  # the chardev id is appended
    disk: str
    net: str
    rng: str


ARCHES = {
    "x86_64": Arch(
        binary="qemu-system-x86_64",
        machine="pc",
        cpu_kvm="host",
        cpu_tcg="max",
        console="isa-serial,chardev=",
        disk="virtio-blk-pci",
        net="virtio-net-pci,romfile=",  # an empty romfile: no option ROM, so no time lost on network boot
        rng="virtio-rng-pci",
    ),
}

#: Other names that people use for the same thing.
ARCH_ALIASES = {"amd64": "x86_64"}


def arch_named(name: str) -> str:
    """The canonical name of an architecture. UsageError if there is no such row."""
    canonical = ARCH_ALIASES.get(name, name)
    if canonical not in ARCHES:
        raise UsageError(f"unknown guest architecture {name!r}", hint=f"known: {', '.join(ARCHES)}")
    return canonical


def qemu_argv(shape: Shape, image: Path, *, network: bool, qmp: str) -> Sequence[str | Path]:
    """QEMU's command line for a machine that boots `image` (a qcow2 file).

    Its SSH port is forwarded from a port of 127.0.0.1 that the kernel picks; without `network` the guest
    reaches nothing else, and nothing else reaches it. `qmp` is the chardev backend of the control channel.
    """
    arch = ARCHES[shape.arch]
    cpu = arch.cpu_kvm if shape.accel == "kvm" else arch.cpu_tcg
    accel = "kvm" if shape.accel == "kvm" else "tcg,thread=multi"
    restrict = "off" if network else "on"
    return [
        arch.binary,
        "-nodefaults", "-no-user-config",
        "-machine", arch.machine,
        "-accel", accel,
        "-cpu", cpu,
        "-smp", str(shape.cpus),
        "-m", f"{shape.memory >> 20}M",
        "-display", "none",
        "-vga", "none",
        "-rtc", "base=utc",
        # a guest that powers off or resets is held, so that its console can still be read
        "-action", "shutdown=pause,reboot=shutdown,panic=shutdown",
        "-chardev", f"{qmp},id=qmp",
        "-mon", "chardev=qmp,mode=control",
        # bounded: a guest cannot fill the host's disk through its console
        "-chardev", "ringbuf,id=console,size=65536",
        "-device", arch.console + "console",
        "-device", arch.rng,
        # unsafe is safe here: a draft is thrown away after a crash, and the commit fsyncs
        "-blockdev", f"driver=file,filename={_comma(image)},node-name=file0,cache.no-flush=on,discard=unmap",
        "-blockdev", "driver=qcow2,file=file0,node-name=disk0,cache.no-flush=on,discard=unmap",
        "-device", f"{arch.disk},drive=disk0,bootindex=0",
        "-netdev", f"user,id=net0,restrict={restrict},ipv6=off,hostfwd=tcp:127.0.0.1:0-:22",
        "-device", f"{arch.net},netdev=net0" if "," not in arch.net else arch.net.replace(",", ",netdev=net0,", 1),
    ]  # fmt: skip


def _comma(path: Path) -> str:
    """QEMU's option parser ends a value at a comma; two stand for one."""
    return str(path).replace(",", ",,")
