"""How big a machine is and what QEMU is told of it: one table row for each architecture.

A shape is never part of an id: a step gives the same result on a larger machine, only sooner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from obuild.errors import UsageError
from obuild.guests.linux_agent import CONTROL_PORT, DATA_PORT
from obuild.guests.profile import MOST_MEMORY, OSES, Card

Accel = Literal["kvm", "tcg"]

DEFAULT_MEMORY = 2 << 30
SMALLEST_MEMORY = 32 << 20
DEFAULT_BUDGET = 4 << 30

#: The longest that a guest may be waited for, in seconds: a day.
LONGEST_BOOT = 86_400.0

VM = ("auto", "boot", "warm")


@dataclass(frozen=True, slots=True)
class Kernel:
    """A Linux kernel that QEMU itself loads; `cmdline` is completed by the machine's console."""

    image: Path
    initrd: Path | None
    cmdline: str


@dataclass(frozen=True, slots=True)
class Shape:
    """`memory` is in bytes; `boot_time` in seconds, for booting and for powering off.

    Without a `kernel` the machine's firmware starts what is on the disk. `warm` gives it the devices that it needs
    to be saved and resumed; a guest sees the same ones whether it is or not.
    """

    arch: str = "x86_64"
    accel: Accel = "tcg"
    cpus: int = 2
    memory: int = 2 << 30
    firmware: str = "bios"
    boot_time: float = 180.0
    kernel: Kernel | None = None
    warm: bool = False

    @property
    def ram(self) -> int:
        """The memory that the machine gets, in bytes: whole MiB."""
        return self.memory >> 20 << 20


@dataclass(frozen=True, slots=True)
class Links:
    """Chardev backends of the two ports through which a warm guest is talked to: one for control, one for data."""

    control: str
    data: str


@dataclass(frozen=True, slots=True)
class Memory:
    """What a machine's memory begins as: zeros, or the content of a file of its size, which is never written to.

    With a file the machine waits for its devices' state, too.
    """

    file: Path | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """What the user asked of machines; "" and 0 leave it to the base image's card. `memory` is in bytes.

    `vm` is how steps get their machines: `boot` one for each, `warm` goes on in saved and running ones, `auto` is
    warm where the guest can be. All saved machines together take `warm_budget` bytes at most.
    """

    accel: str = "auto"
    memory: int = 0
    cpus: int = 2
    boot_time: float = 180.0
    os: str = ""
    arch: str = ""
    vm: str = "auto"
    warm_budget: int = DEFAULT_BUDGET

    def checked(self) -> Settings:
        """Itself. UsageError for what no machine can be."""
        if self.accel not in ("auto", "kvm", "tcg"):
            raise UsageError(f"unknown accelerator {self.accel!r}", hint="--qemu-accel auto, kvm or tcg")
        if self.memory and self.memory < SMALLEST_MEMORY:
            raise UsageError(f"--qemu-memory: a machine needs at least {SMALLEST_MEMORY >> 20}M")
        if self.memory > MOST_MEMORY:
            raise UsageError(f"--qemu-memory: no machine can have more than {MOST_MEMORY >> 40}T")
        if not 0 < self.boot_time <= LONGEST_BOOT:  # nan is neither
            raise UsageError(f"--qemu-boot-time {self.boot_time:g}: it can be up to {LONGEST_BOOT:g} seconds")
        if self.os not in ("", *OSES):
            raise UsageError(f"unknown guest OS {self.os!r}", hint=f"--qemu-guest-os {', '.join(OSES)}")
        if self.vm not in VM:
            raise UsageError(f"--vm {self.vm}: it can be {', '.join(VM)}")
        if self.arch:
            arch_named(self.arch)
        return self

    def shape(self, card: Card, accel: Accel) -> Shape:
        """The machine for a base image with this card. UsageError if its guest cannot be run so."""
        arch = arch_named(self.arch or card.arch)
        why_not = _why_not_warm(arch, self.os or card.os, card)
        if why_not and self.vm == "warm":
            raise UsageError(f"this guest cannot be kept warm: {why_not}", hint="--vm auto, or --vm boot")
        return Shape(
            arch=arch,
            accel=accel,
            cpus=self.cpus,
            memory=self.memory or max(DEFAULT_MEMORY, card.memory),
            firmware=card.firmware,
            boot_time=self.boot_time,
            warm=not why_not,
        )


def _why_not_warm(arch: str, os: str, card: Card) -> str:
    if os != "linux":
        return "it runs no Linux"
    if card.warm == "no":
        return "its base image's card says so"
    if not ARCHES[arch].genid:
        return f"nothing tells a guest on {arch} that it was resumed, and two would have the same random numbers"
    return ""


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
    #: A device that tells a guest that it was resumed: Linux then makes its random numbers anew.
    genid: str = ""
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
        genid="vmgenid,guid=auto",
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


def qemu_argv(
    shape: Shape,
    image: Path,
    *,
    network: bool,
    qmp: str,
    links: Links | None = None,
    memory: Memory | None = None,
) -> Sequence[str | Path]:
    """QEMU's command line for a machine that boots `image` (a qcow2 file).

    Its SSH port is forwarded from a port of 127.0.0.1 that the kernel picks; without `network` the guest
    reaches nothing else, and nothing else reaches it. `qmp` is the chardev backend of the control channel.

    With `memory`, which only a shape that is `warm` may have, the machine is held at first, and has both kinds of
    network: the one that is open is up only when QMP's set_link says so, and the closed one is down then.
    """
    arch = ARCHES[shape.arch]
    cpu = arch.cpu_kvm if shape.accel == "kvm" else arch.cpu_tcg
    accel = "kvm" if shape.accel == "kvm" else "tcg,thread=multi"
    return [
        arch.binary,
        "-nodefaults", "-no-user-config",
        "-machine", arch.machine + (",memory-backend=ram0,suppress-vmdesc=on" if memory else ""),
        "-accel", accel,
        "-cpu", cpu,
        "-smp", str(shape.cpus),
        "-m", f"{shape.ram >> 20}M",
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
        *(_network_argv(network) if memory is None else _switched_network_argv()),
        "-device", f"{arch.net},netdev=net0" if "," not in arch.net else arch.net.replace(",", ",netdev=net0,", 1),
        *(_warm_argv(arch, links or Links("null", "null")) if shape.warm else ()),
        *(_memory_argv(memory, shape.ram) if memory else ()),
        *(arch.firmware if shape.kernel is None else _kernel_argv(shape.kernel, arch.tty)),
    ]  # fmt: skip


#: What QEMU forwards to the guest's SSH server.
_FORWARD = "ipv6=off,hostfwd=tcp:127.0.0.1:0-:22"


def _network_argv(network: bool) -> list[str | Path]:
    return ["-netdev", f"user,id=net0,restrict={'off' if network else 'on'},{_FORWARD}"]


def _switched_network_argv() -> list[str | Path]:
    """Both kinds of network on one hub with the guest's card: to the guest they look the same."""
    return [
        *("-netdev", f"user,id={CLOSED},restrict=on,{_FORWARD}"),
        *("-netdev", f"user,id={OPEN},restrict=off,{_FORWARD}"),
        *("-netdev", f"hubport,id=hub1,hubid=0,netdev={CLOSED}"),
        *("-netdev", f"hubport,id=hub2,hubid=0,netdev={OPEN}"),
        *("-netdev", "hubport,id=net0,hubid=0"),
    ]


#: The names of the two kinds of network where a machine has both.
CLOSED, OPEN = "closed", "open"


def _warm_argv(arch: Arch, links: Links) -> list[str | Path]:
    return [
        *("-device", arch.genid),
        *("-device", "virtio-serial-pci"),
        *("-chardev", f"{links.control},id=control"),
        *("-device", f"virtserialport,id=port1,chardev=control,name={CONTROL_PORT}"),
        *("-chardev", f"{links.data},id=data"),
        *("-device", f"virtserialport,id=port2,chardev=data,name={DATA_PORT}"),
    ]


def _memory_argv(memory: Memory, size: int) -> list[str | Path]:
    kind = f"memory-backend-file,mem-path={_comma(memory.file)}" if memory.file else "memory-backend-ram"
    return [
        *("-object", f"{kind},id=ram0,size={size},share=off"),
        "-S",
        # the state that xen-save-devices-state writes has no such section
        *("-global", "migration.send-configuration=off"),
        *(("-incoming", "defer") if memory.file else ()),
    ]


def _kernel_argv(kernel: Kernel, tty: str) -> list[str | Path]:
    return [
        *("-kernel", kernel.image),
        *(("-initrd", kernel.initrd) if kernel.initrd else ()),
        *("-append", f"console={tty} {kernel.cmdline}".strip()),
    ]


def _comma(path: Path) -> str:
    """QEMU's option parser ends a value at a comma; two stand for one."""
    return str(path).replace(",", ",,")
