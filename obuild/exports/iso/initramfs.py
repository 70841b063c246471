"""The initial RAM disk of an ISO: a static busybox, drivers of the layer's kernel, and a script of `resident/`."""

from __future__ import annotations

import gzip
import shlex
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from obuild.bases.scratch import cpio, elf
from obuild.errors import UsageError
from obuild.exports.iso.kernel import Kernel
from obuild.host import process
from obuild.host.trees.nodes import Tree

#: Without these, nothing can be shown to the system as its root.
NEEDED = ("squashfs", "loop", "overlay")

#: Drivers for media: one that lacks any of them cannot be sure to find a CD or a stick.
MEDIA = ("isofs", "sr_mod", "sd_mod", "ahci", "xhci_pci", "usb_storage")

#: Other drivers for media and for disks to install to.
_DISKS = (
    *("ata_piix", "ata_generic", "ehci_pci", "ohci_pci", "uhci_hcd", "uas"),
    *("virtio_pci", "virtio_blk", "virtio_scsi", "nvme", "mmc_block", "sdhci_pci", "sdhci_acpi"),
    *("vmw_pvscsi", "mptspi", "mptsas", "mpt3sas", "megaraid_sas", "hpsa", "aacraid", "smartpqi"),
    *("hv_storvsc", "xen_blkfront"),
)

#: For answers to questions.
_KEYBOARDS = ("atkbd", "i8042", "usbhid", "hid_generic", "hyperv_keyboard")

#: For a partition that keeps changes: what ext4 asks the kernel for by name comes first.
_DATA = ("crc32c_generic", "crc32c_intel", "ext4")

_BUSYBOX = ("bin/busybox", "usr/bin/busybox")

#: Empty folders in it, most to mount something on.
_FOLDERS = ("dev", "proc", "sys", "run", "root", "medium", "payload", "changes", "modules")


def missing(kernel: Kernel) -> list[str]:
    """The drivers for CDs and USB sticks that the kernel lacks. UsageError if it lacks what every ISO needs."""
    if lacking := kernel.modules.missing(NEEDED):
        raise UsageError(
            f"the layer's kernel {kernel.release} has no {' and no '.join(lacking)}, which an ISO needs",
            hint="install another kernel package, or the package with more of its modules",
        )
    return kernel.modules.missing(MEDIA)


def build(script: str, settings: Mapping[str, str], kernel: Kernel, busybox: bytes) -> bytes:
    """The compressed archive. `script` is a file of `resident/`; it reads the settings as variables."""
    wanted = (*NEEDED, *MEDIA, *_DISKS, *_KEYBOARDS, *_DATA)
    modules = kernel.modules.closure(wanted, must=False)
    values = "".join(f"{name}={shlex.quote(value)}\n" for name, value in settings.items())
    files: dict[str, tuple[int, bytes]] = {
        "init": (0o755, (_resident("common.sh") + _resident(script)).encode()),
        "settings": (0o644, values.encode()),
        "bin/busybox": (0o755, busybox),
        "modules/order": (0o644, "".join(f"{name}\n" for name in modules).encode()),
    }
    files |= {f"modules/{name}": (0o644, data) for name, data in modules.items()}
    files |= {f"{folder}/": (0o755, b"") for folder in _FOLDERS}
    return gzip.compress(cpio.archive(files), compresslevel=6, mtime=0)


def busybox_for(arch: str, tree: Tree) -> bytes:
    """A static busybox: this host's, else the layer's. UsageError if neither has one for `arch`."""
    found = (path.read_bytes() for path in (Path("/") / each for each in _BUSYBOX) if path.is_file())
    for program in (*found, *(tree.read(path) or b"" for path in _BUSYBOX)):
        if elf.static_for(program) == arch:
            return program
    raise UsageError(
        f"neither this host nor the layer has a static busybox for {arch}, which an ISO needs",
        hint=f"apt install {process.PACKAGES['busybox']}, here or in a step of the spec",
    )


def _resident(name: str) -> str:
    return resources.files("obuild.exports.iso").joinpath("resident", name).read_text(encoding="utf-8")
