"""The formats of `obuild export --type`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from obuild.exports.disk import Disk
from obuild.exports.formats import (
    containerdisk,
    files,
    installer_iso,
    iso,
    ova,
    qcow2,
    raw,
    vdi,
    vhd,
    vhdx,
    vmdk,
    vmdk_sparse,
)
from obuild.guests.profile import Card


def _anything(size: int, card: Card) -> None:
    return None


class Format(NamedTuple):
    """A format of images: what its files end in, what writes one, and what refuses a disk or a guest.

    `write` makes the file `out`, which is not there yet. The same disk gives the same bytes. It may fail with an
    ObuildError or an OSError, and leave a part of the file. `programs` are what it calls besides qemu-img. If it
    takes `files_only`, the free space of the disk has no part in it.
    """

    suffix: str
    what: str
    write: Callable[[Disk, Path], None]
    check: Callable[[int, Card], None] = _anything
    programs: tuple[str, ...] = ()
    files_only: bool = False


def _files(
    suffix: str,
    what: str,
    write: Callable[[Disk, Path], None],
    check: Callable[[int, Card], None] = files.check,
    programs: tuple[str, ...] = (),
) -> Format:
    """A format with the files of the root file system."""
    return Format(suffix, what, write, check, programs, files_only=True)


FORMATS = {
    "raw": Format("raw", "the disk as it is, with holes", raw.write),
    "raw.gz": Format("raw.gz", "the disk, compressed by gzip", raw.write_gz, programs=("gzip",)),
    "raw.xz": Format("raw.xz", "the disk, compressed by xz", raw.write_xz, programs=("xz",)),
    "raw.zst": Format("raw.zst", "the disk, compressed by zstd", raw.write_zst, programs=("zstd",)),
    "qcow2": Format("qcow2", "QEMU, libvirt, OpenStack, Proxmox", qcow2.write),
    "vmdk": Format("vmdk", "VMware: stream-optimized, for vSphere and clouds", vmdk.write),
    "vmdk-sparse": Format("sparse.vmdk", "VMware Workstation, VirtualBox", vmdk_sparse.write, vmdk_sparse.check),
    "ova": Format("ova", "vSphere, VirtualBox: a machine with its disk", ova.write, ova.check),
    "vhd": Format("vhd", "Azure: fixed, in whole MiB", vhd.write, vhd.check),
    "vhd-dynamic": Format("dynamic.vhd", "older Hyper-V, Virtual PC, Xen", vhd.write_dynamic, vhd.check),
    "vhdx": Format("vhdx", "Hyper-V", vhdx.write),
    "vdi": Format("vdi", "VirtualBox", vdi.write),
    "iso": _files("iso", "a live system for CDs and USB sticks", iso.write, iso.check),
    "installer-iso": Format(
        "installer.iso", "writes the disk to that of a machine", installer_iso.write, installer_iso.check
    ),
    "containerdisk": Format("oci", "KubeVirt: a container image, as an OCI image layout", containerdisk.write),
    "oci-archive": Format("oci.tar", "the same in one file", containerdisk.write_archive),
    "tar": _files("tar", "the files of the root file system", files.write_tar),
    "tar.gz": _files("tar.gz", "the files, compressed by gzip", files.write_gz, programs=("gzip",)),
    "tar.xz": _files("tar.xz", "the files, compressed by xz", files.write_xz, programs=("xz",)),
    "tar.zst": _files("tar.zst", "the files, compressed by zstd", files.write_zst, programs=("zstd",)),
    "dir": _files("dir", "the files in a folder; root only", files.write_folder, files.check_root, ("tar",)),
    "squashfs": _files("squashfs", "the files, compressed", files.write_squashfs, programs=("mksquashfs",)),
}
