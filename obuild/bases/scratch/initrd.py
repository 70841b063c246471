"""The initial RAM disk of a sealed image: it opens the root with dm-verity and starts the system.

It is made of the image's own packages, which may be for another architecture: nothing of it is run here.
"""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from obuild.bases.scratch import cpio, elf
from obuild.bases.scratch.kernel_modules import Modules
from obuild.errors import UsageError

#: The packages that it is made from.
PACKAGES = ("busybox-static", "dmsetup")

#: Lines of shell that put what it is made of into the file {here}/parts.tar, before the recipe's script prunes it.
PARTS = "parts.tar"
TAKE_PARTS = f"""\
(cd "$root" && tar --create --file {{here}}/{PARTS} usr/lib/modules usr/bin/busybox usr/sbin/dmsetup \\
    $(find usr/lib -maxdepth 2 -name '*.so*'))
"""

#: Drivers that all our machines need, and drivers for other disks, which are tried if no root appears.
_DRIVERS = ("virtio_pci", "virtio_blk", "dm_verity", "squashfs", "overlay")
_OTHER_DISKS = ("virtio_scsi", "sd_mod", "nvme", "hv_storvsc", "xen_blkfront")

#: Writable folders of the root. Changes are kept in memory and lost with the machine.
WRITABLE = ("etc", "var", "root", "home")

_INIT = f"""\
#!/bin/busybox sh
busybox mount -t devtmpfs dev /dev
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys

# Time for the serial port to show what was said, before the kernel panics.
fail() {{
    echo "$*"
    busybox sleep 1
    exit 1
}}

load() {{ while read -r module; do busybox insmod "/modules/$module"; done <"$1"; }}

# Find the two partitions, if their disk is there.
find_partitions() {{
    data= tree=
    for entry in /sys/class/block/*/uevent; do
        device=${{entry%/uevent}}
        device=/dev/${{device##*/}}
        while read -r line; do
            case $line in
            PARTNAME=root) data=$device ;;
            PARTNAME=root-verity) tree=$device ;;
            esac
        done <"$entry"
    done
    [ -n "$data" ] && [ -n "$tree" ]
}}

read -r cmdline </proc/cmdline
for word in $cmdline; do
    case $word in
    roothash=*) root_hash=${{word#*=}} ;;
    verity.blocks=*) blocks=${{word#*=}} ;;
    verity.salt=*) salt=${{word#*=}} ;;
    esac
done
load /modules/first
tries=0
until find_partitions; do
    tries=$((tries + 1))
    if [ $tries = 200 ]; then load /modules/other; fi
    if [ $tries = 3000 ]; then fail "there is no disk with partitions root and root-verity"; fi
    busybox usleep 10000
done
# A block that does not match the hash tree stops the machine, as soon as it is read.
table="0 $((blocks * 8)) verity 1 $data $tree 4096 4096 $blocks 1 sha256 $root_hash $salt 1 panic_on_corruption"
dmsetup create root --readonly --noudevsync --noudevrules --table "$table" || fail "cannot open the root"
busybox mount -t squashfs -o ro /dev/dm-0 /root || fail "cannot mount the root"

busybox mount -t tmpfs -o mode=755 writable /writable
for folder in {" ".join(WRITABLE)}; do
    [ -d /root/$folder ] || continue
    busybox mkdir -p /writable/$folder/upper /writable/$folder/work
    busybox chmod "$(busybox stat -c %a /root/$folder)" /writable/$folder/upper
    layers=lowerdir=/root/$folder,upperdir=/writable/$folder/upper,workdir=/writable/$folder/work
    busybox mount -t overlay -o "$layers" overlay "/root/$folder" || fail "cannot make /$folder writable"
done
busybox mount -t tmpfs -o mode=1777,nosuid,nodev tmp /root/tmp
busybox umount /proc
busybox umount /sys
busybox mount -o move /dev /root/dev
exec busybox switch_root /root /sbin/init
"""


def build(parts: Path) -> bytes:
    """Make the initial RAM disk from the archive of `TAKE_PARTS`. UsageError if that lacks something."""
    with tarfile.open(parts) as tar:
        entries = sorted(tar, key=tarfile.TarInfo.isfile)  # a file wins over a link of the same name
        index = {PurePosixPath(entry.name).name: entry for entry in entries if entry.isfile() or entry.issym()}

        def read(name: str) -> bytes:
            entry = index.get(name)
            if entry is not None and entry.issym() and (other := PurePosixPath(entry.linkname).name) != name:
                return read(other)
            file = tar.extractfile(entry) if entry is not None else None
            if file is None:
                raise UsageError(f"the new root has no {name}, which its initial RAM disk needs")
            return file.read()

        builtin = [PurePosixPath(line).name for line in read("modules.builtin").decode().splitlines()]
        modules = Modules(index, read, builtin)
        first = modules.closure(_DRIVERS, must=True)
        other = modules.closure(_OTHER_DISKS, must=False)
        dmsetup = read("dmsetup")
        files: dict[str, tuple[int, bytes]] = {
            "init": (0o755, _INIT.encode()),
            "bin/busybox": (0o755, read("busybox")),
            "sbin/dmsetup": (0o755, dmsetup),
            elf.interpreter(dmsetup): (0o755, read(PurePosixPath(elf.interpreter(dmsetup)).name)),
        }
        pending = list(elf.needed(dmsetup))
        while pending:
            library = pending.pop(0)
            if f"lib/{library}" not in files and f"/{library}" not in elf.interpreter(dmsetup):
                files[f"lib/{library}"] = (0o644, read(library))
                pending += elf.needed(files[f"lib/{library}"][1])
        files |= {f"modules/{name}": (0o644, data) for name, data in {**first, **other}.items()}
        files["modules/first"] = (0o644, _lines(first))
        files["modules/other"] = (0o644, _lines(name for name in other if name not in first))
        files |= {f"{folder}/": (0o755, b"") for folder in ("dev", "proc", "sys", "root", "writable")}
        return gzip.compress(cpio.archive(files), mtime=0)


def _lines(names: Iterable[str]) -> bytes:
    return "".join(f"{name}\n" for name in names).encode()
