"""QEMU's command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from obuild.executors.qemu.arches import ARCHES, Arch
from obuild.executors.qemu.shape import Kernel, Nvram, Shape
from obuild.executors.qemu.tpm import tpm_argv
from obuild.guests.linux_agent import CONTROL_PORT, DATA_PORT
from obuild.host.qemu_img import escaped


@dataclass(frozen=True, slots=True)
class Links:
    """Chardev backends of the two ports for talking to a warm guest: one for control, one for data."""

    control: str
    data: str


@dataclass(frozen=True, slots=True)
class Memory:
    """A machine's initial memory: zeros, or the content of a file of the same size, which is never written to.

    With a file, the machine also waits for its devices' state.
    """

    file: Path | None = None


def qemu_argv(
    shape: Shape,
    image: Path,
    *,
    network: bool,
    qmp: str,
    links: Links | None = None,
    memory: Memory | None = None,
    tpm: str = "",
    extra: Sequence[str | Path] = (),
) -> Sequence[str | Path]:
    """Return QEMU's command line for a machine that boots `image` (a qcow2 file).

    The kernel picks a port of 127.0.0.1 that is forwarded to its SSH port. Without `network`, the guest reaches
    nothing else, and nothing else reaches it. `qmp` is the chardev backend of the control channel.

    With `memory`, which requires a shape that is `warm`, the machine starts paused and has both kinds of network:
    QMP's set_link brings one of them up and the other down. `tpm` is the chardev backend that leads to the TPM, if
    there is one. `extra` comes last.
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
        # keep a guest that powers off or resets paused, so that its console can still be read
        "-action", "shutdown=pause,reboot=shutdown,panic=shutdown",
        "-chardev", f"{qmp},id=qmp",
        "-mon", "chardev=qmp,mode=control",
        # bounded: a guest cannot fill the host's disk through its console
        "-chardev", "ringbuf,id=console,size=65536",
        arch.console[0], arch.console[1] + "console",
        "-device", arch.rng,
        # unsafe is safe here: a draft is thrown away after a crash, and the commit fsyncs
        "-blockdev", f"driver=file,filename={escaped(image)},node-name=file0,cache.no-flush=on,discard=unmap",
        "-blockdev", "driver=qcow2,file=file0,node-name=disk0,cache.no-flush=on,discard=unmap",
        # a kernel that QEMU loads is the boot device, and some machines refuse to have two
        "-device", f"{arch.disk},drive=disk0" + (",bootindex=0" if shape.kernel is None else ""),
        *(_network_argv(network) if memory is None else _switched_network_argv()),
        "-device", f"{arch.net},netdev=net0" if "," not in arch.net else arch.net.replace(",", ",netdev=net0,", 1),
        *(_warm_argv(arch, links or Links("null", "null")) if shape.warm else ()),
        *(_memory_argv(memory, shape.ram) if memory else ()),
        *_firmware_argv(shape, arch),
        *(tpm_argv(arch.tpm, tpm) if tpm else ()),
        *extra,
    ]  # fmt: skip


#: Forwards a host port to the guest's SSH server.
_FORWARD = "ipv6=off,hostfwd=tcp:127.0.0.1:0-:22"


def _network_argv(network: bool) -> list[str | Path]:
    return ["-netdev", f"user,id=net0,restrict={'off' if network else 'on'},{_FORWARD}"]


def _switched_network_argv() -> list[str | Path]:
    """Put both kinds of network and the guest's card on one hub: to the guest they look the same."""
    return [
        *("-netdev", f"user,id={CLOSED},restrict=on,{_FORWARD}"),
        *("-netdev", f"user,id={OPEN},restrict=off,{_FORWARD}"),
        *("-netdev", f"hubport,id=hub1,hubid=0,netdev={CLOSED}"),
        *("-netdev", f"hubport,id=hub2,hubid=0,netdev={OPEN}"),
        *("-netdev", "hubport,id=net0,hubid=0"),
    ]


#: The names of the two kinds of network in a machine that has both.
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
    kind = f"memory-backend-file,mem-path={escaped(memory.file)}" if memory.file else "memory-backend-ram"
    return [
        *("-object", f"{kind},id=ram0,size={size},share=off"),
        "-S",
        # the state that xen-save-devices-state writes lacks this section
        *("-global", "migration.send-configuration=off"),
        *(("-incoming", "defer") if memory.file else ()),
    ]


def _firmware_argv(shape: Shape, arch: Arch) -> list[str | Path]:
    """Return options for what boots the machine: a kernel that QEMU loads, with or without UEFI, or firmware."""
    uefi: list[str | Path] = []
    if shape.firmware == "uefi" and arch.uefi is not None:
        uefi = _flash_argv(arch.uefi[0], shape.nvram) if shape.nvram else ["-bios", arch.uefi_rom]
    if shape.kernel is not None:
        return [*uefi, *_kernel_argv(shape.kernel, arch.tty)]
    return uefi or list(arch.firmware)


def _flash_argv(code: str, nvram: Nvram) -> list[str | Path]:
    snapshot = "off" if nvram.kept else "on"  # a snapshot is a nameless temporary file
    return [
        *("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={code}"),
        *("-drive", f"if=pflash,unit=1,format=raw,snapshot={snapshot},file={escaped(nvram.file)}"),
    ]


def _kernel_argv(kernel: Kernel, tty: str) -> list[str | Path]:
    return [
        *("-kernel", kernel.image),
        *(("-initrd", kernel.initrd) if kernel.initrd else ()),
        *("-append", f"console={tty} {kernel.cmdline}".strip()),
    ]
