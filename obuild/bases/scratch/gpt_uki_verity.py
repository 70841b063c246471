"""The layout "gpt-uki-verity": the image as in "gpt-uki", and beside it the same root sealed, for deployment.

The sealed disk is a raw file, NAME.verity.raw:

    partition 1     root: squashfs
    partition 2     root-verity: the dm-verity hash tree of it
    partition 3     the EFI system partition: the root hash is on the command line of its kernel

So whoever trusts the hash of that one program trusts every byte of the root. NAME.pcrs.json says the root hash,
and what a TPM holds after a boot. Steps build on the writable image: what they write on the sealed one is lost.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from uuid import UUID

from obuild.bases.kind import Recipe
from obuild.bases.scratch import esp, gpt, gpt_uki, initrd, measured_boot, uki, verity
from obuild.bases.scratch.gpt import Partition
from obuild.bases.scratch.root_files import HOST_KEY
from obuild.bases.scratch.root_partition import START, part_id
from obuild.host import process
from obuild.host.partitions import ESP_TYPE, ROOT_TYPES
from obuild.store.base_images import PCRS, SEALED

FIRMWARES = gpt_uki.FIRMWARES

PACKAGES = (*gpt_uki.PACKAGES, *initrd.PACKAGES)

#: The sealed root that the hook makes.
_ROOT = "root.squashfs"

TAKEN = (*gpt_uki.TAKEN, initrd.PARTS, _ROOT)

root_size = gpt_uki.root_size
files = gpt_uki.files
make_bootable = gpt_uki.make_bootable


def check_host(recipe: Recipe) -> None:
    """See `Layout.check_host`."""
    gpt_uki.check_host(recipe)
    process.require("mksquashfs")


def take(recipe: Recipe) -> str:
    """See `Layout.take`."""
    return gpt_uki.take(recipe) + initrd.TAKE_PARTS


def finish(recipe: Recipe) -> str:
    """See `Layout.finish`.

    Level 3 of zstd takes a tenth of the time of its usual level, and the image is 13 % larger. The files that have
    room for a store's keys are left out.
    """
    host_key = shlex.quote(HOST_KEY.lstrip("/"))
    return f"""\
mksquashfs {{here}}/bare {{here}}/{_ROOT} -noappend -no-progress -quiet -comp zstd -Xcompression-level 3 \\
    -e $(sed 's|^/||' {{here}}/login-key) {host_key} >&2
"""


def beside(recipe: Recipe, work: Path) -> Mapping[str, Path]:
    """See `Layout.beside`."""
    root = work / _ROOT
    salt = hashlib.sha256(part_id(recipe, "salt").bytes).digest()
    tree = verity.tree(root, identity=part_id(recipe, "verity"), salt=salt)
    cmdline = (
        f"roothash={tree.root_hash} verity.blocks={tree.blocks} verity.salt={tree.salt} ro "
        f"console={gpt_uki.CONSOLES[recipe.card.arch]} {recipe.options.cmdline}"
    ).strip()
    sections = gpt_uki.sections(work, cmdline, initrd.build(work / initrd.PARTS))
    image = uki.build((work / gpt_uki.STUB).read_bytes(), sections)
    disk = work / "sealed.raw"
    _write_disk(recipe, disk, root, tree, image, work)
    about = {
        "root_hash": tree.root_hash,
        "cmdline": cmdline,
        "pcrs": {"sha256": measured_boot.pcrs(image, sections)},
    }
    (work / "pcrs.json").write_text(json.dumps(about, indent=1) + "\n")
    return {SEALED: disk, PCRS: work / "pcrs.json"}


def _write_disk(recipe: Recipe, disk: Path, root: Path, tree: verity.Tree, image: bytes, work: Path) -> None:
    arch, program = recipe.card.arch, work / "sealed.efi"
    program.write_bytes(image)
    # The ids of the two are the halves of the root hash, so they can be found by the hash.
    first, second = (UUID(hex=half) for half in (tree.root_hash[:32], tree.root_hash[32:]))
    data = Partition("root", START, _whole(root.stat().st_size), ROOT_TYPES[arch], first)
    hashes = Partition("root-verity", data.end, _whole(len(tree.data)), gpt.VERITY_TYPES[arch], second)
    system = Partition("esp", hashes.end, esp.SIZE, ESP_TYPE, part_id(recipe, "sealed-esp"))
    with disk.open("wb") as file:
        file.truncate(system.end + gpt.END)
        file.seek(data.start)
        with root.open("rb") as source:
            while chunk := source.read(1 << 20):
                file.write(chunk)
        file.seek(hashes.start)
        file.write(tree.data)
    gpt.write(disk, part_id(recipe, "sealed"), (data, hashes, system))
    epoch = int((work / "epoch").read_text())
    esp.write(disk, start=system.start, arch=arch, program=program, identity=system.id, epoch=epoch)


def _whole(size: int) -> int:
    """`size` in whole MiB."""
    return -(-size // (1 << 20)) << 20
