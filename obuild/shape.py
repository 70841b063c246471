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
class Kernel:
    """A Linux kernel that QEMU itself loads; `cmdline` is completed by the machine's console."""

    image: Path
    initrd: Path | None
    cmdline: str


@dataclass(frozen=True, slots=True)
class Shape:
    """`memory` is in bytes; `boot_time` in seconds, for booting and for powering off.

    Without a `kernel` the machine's firmware starts what is on the disk.
    """

    arch: str = "x86_64"
    accel: Accel = "tcg"
    cpus: int = 2
    memory: int = 2 << 30
    firmware: str = "bios"
    boot_time: float = 180.0
    kernel: Kernel | None = None


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
    console: tuple[str, str]  # an option and its value, to which the chardev's id is appended
    tty: str  # what Linux calls that console
    disk: str
    net: str
    rng: str
    #: Whether a Linux guest hears QEMU's power button; else it must be told to power off over SSH.
    button: bool = True
    #: Options that give the machine a firmware which starts a disk, if it has none built in.
    firmware: tuple[str, ...] = ()
    #: Debian's package for the last of them, a file.
    firmware_package: str = ""


ARCHES = {
    "x86_64": Arch(
        binary="qemu-system-x86_64",
        machine="pc",
        cpu_kvm="host",
        cpu_tcg="max",
        console=("-device", "isa-serial,chardev="),
        tty="ttyS0",
        disk="virtio-blk-pci",
        net="virtio-net-pci,romfile=",  # an empty romfile: no option ROM, so no time lost on network boot
        rng="virtio-rng-pci",
    ),
    # The button is a GPIO key if QEMU loads the kernel itself, and ACPI's under UEFI.
    "aarch64": Arch(
        binary="qemu-system-aarch64",
        machine="virt,gic-version=max",  # the machine's default, version 2, ends at 8 CPUs
        cpu_kvm="host",
        cpu_tcg="max,pauth-impdef=on",  # pointers are signed by a quick hash: QARMA costs more than all else
        console=("-serial", "chardev:"),  # the board's own UART
        tty="ttyAMA0",
        disk="virtio-blk-pci",
        net="virtio-net-pci,romfile=",
        rng="virtio-rng-pci",
        firmware=("-bios", "/usr/share/qemu-efi-aarch64/QEMU_EFI.fd"),
        firmware_package="qemu-efi-aarch64",
    ),
    "riscv64": Arch(
        binary="qemu-system-riscv64",
        machine="virt",
        cpu_kvm="host",
        cpu_tcg="rv64",
        console=("-serial", "chardev:"),
        tty="ttyS0",
        disk="virtio-blk-pci",
        net="virtio-net-pci,romfile=",
        rng="virtio-rng-pci",
        button=False,  # the board has none
        firmware=("-kernel", "/usr/lib/u-boot/qemu-riscv64_smode/uboot.elf"),
        firmware_package="u-boot-qemu",
    ),
    # The button is the signal `quiesce`, which Linux takes for Ctrl-Alt-Del.
    "s390x": Arch(
        binary="qemu-system-s390x",
        machine="s390-ccw-virtio",
        cpu_kvm="host",
        cpu_tcg="max",
        console=("-device", "sclpconsole,chardev="),
        tty="ttysclp0",
        disk="virtio-blk-ccw",
        net="virtio-net-ccw",
        rng="virtio-rng-ccw",
    ),
    # The button is an EPOW event, to which the kernel itself runs /sbin/poweroff.
    "ppc64le": Arch(
        binary="qemu-system-ppc64",
        machine="pseries",
        cpu_kvm="host",
        cpu_tcg="power9",
        console=("-device", "spapr-vty,chardev="),
        tty="hvc0",
        disk="virtio-blk-pci",
        net="virtio-net-pci,romfile=",
        rng="virtio-rng-pci",
    ),
}

#: Other names that people use for the same thing.
ARCH_ALIASES = {"amd64": "x86_64", "arm64": "aarch64", "ppc64el": "ppc64le"}


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
        arch.console[0], arch.console[1] + "console",
        "-device", arch.rng,
        # unsafe is safe here: a draft is thrown away after a crash, and the commit fsyncs
        "-blockdev", f"driver=file,filename={_comma(image)},node-name=file0,cache.no-flush=on,discard=unmap",
        "-blockdev", "driver=qcow2,file=file0,node-name=disk0,cache.no-flush=on,discard=unmap",
        "-device", f"{arch.disk},drive=disk0,bootindex=0",
        "-netdev", f"user,id=net0,restrict={restrict},ipv6=off,hostfwd=tcp:127.0.0.1:0-:22",
        "-device", f"{arch.net},netdev=net0" if "," not in arch.net else arch.net.replace(",", ",netdev=net0,", 1),
        *(arch.firmware if shape.kernel is None else _kernel_argv(shape.kernel, arch.tty)),
    ]  # fmt: skip


def _kernel_argv(kernel: Kernel, tty: str) -> list[str | Path]:
    return [
        *("-kernel", kernel.image),
        *(("-initrd", kernel.initrd) if kernel.initrd else ()),
        *("-append", f"console={tty} {kernel.cmdline}".strip()),
    ]


def _comma(path: Path) -> str:
    """QEMU's option parser ends a value at a comma; two stand for one."""
    return str(path).replace(",", ",,")
