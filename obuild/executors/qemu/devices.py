"""Extra devices of a machine in which a base image is made: media, a screen, a port for reports."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from obuild.executors.qemu.arches import ARCHES
from obuild.host.qemu_img import escaped

Bus = Literal["disk", "cdrom", "floppy"]

#: The port through which a guest reports to QEMU, and how many bytes of the report are kept; a power of two.
REPORT, REPORT_SIZE = "report", 65536

#: The x86_64 machine has two IDE channels, with two drives each.
MOST_CDROMS = 4

Argv = list[str | Path]


def medium(arch: str, number: int, path: Path, bus: Bus, *, boot: bool = False, ide: bool = True) -> Argv:
    """Return options for a read-only medium with a unique `number`. With `boot`, it is tried after the disk.

    A "disk" is virtio: kernels for clouds have no other drivers. Without `ide`, CD drives are virtio SCSI on every
    architecture, else they are IDE on x86_64.
    """
    ide = ide and arch == "x86_64"
    device = f"{_device(arch, number, bus, ide)},drive=disk{number}" + (",bootindex=1" if boot else "")
    return [
        *("-blockdev", f"driver=file,filename={escaped(path)},node-name=file{number},read-only=on"),
        *("-blockdev", f"driver=raw,file=file{number},node-name=disk{number},read-only=on"),
        *(("-device", f"virtio-scsi{_suffix(arch)},id=scsi{number}") if bus == "cdrom" and not ide else ()),
        *("-device", device),
    ]


def _device(arch: str, number: int, bus: Bus, ide: bool) -> str:
    match bus:
        case "disk":
            return ARCHES[arch].disk
        case "floppy":
            return "floppy,drive-type=144"
        case "cdrom" if ide:
            return f"ide-cd,bus=ide.{(number - 1) // 2 % 2},unit={(number - 1) % 2}"
        case "cdrom":
            return f"scsi-cd,bus=scsi{number}.0"


def floppy_drive(arch: str) -> str:
    """Return why a machine has no floppy drive, or "" if it has one."""
    return "" if arch == "x86_64" else f"a machine for {arch} has no floppy drive"


def reporting(arch: str, port: str) -> Argv:
    """Return options for a port through which the guest reports; the report is kept in memory."""
    return [
        *("-device", f"virtio-serial{_suffix(arch)}"),
        *("-chardev", f"ringbuf,id={REPORT},size={REPORT_SIZE}"),
        *("-device", f"virtserialport,chardev={REPORT},name={port}"),
    ]


def screen(arch: str) -> Argv:
    """Return options for a screen that can be photographed; on x86_64, panics are also reported."""
    if arch == "x86_64":
        return ["-device", "VGA", "-device", "pvpanic"]
    return ["-device", f"virtio-gpu{_suffix(arch)}"]


def watched() -> Argv:
    """Return options to show the screen by VNC, on a free port of 127.0.0.1."""
    return ["-vnc", "127.0.0.1:0,to=999"]


#: A BIOS that finds nothing to boot resets the machine instead of waiting forever.
GIVE_UP = ("-boot", "strict=on,reboot-timeout=1")

#: A guest that reboots continues.
REBOOTS = ("-action", "reboot=reset")


def _suffix(arch: str) -> str:
    return ARCHES[arch].disk.partition("virtio-blk")[2]  # -pci, or -ccw
