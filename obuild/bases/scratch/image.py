"""A base image from Debian packages, made bootable without mounting anything: no root, no guest."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from obuild.bases import work_folder
from obuild.bases.kind import Making, Recipe
from obuild.bases.scratch import apt, ext4, layouts, mmdebstrap, mmdebstrap_hook, root_files, root_partition
from obuild.bases.scratch import options as scratch_options
from obuild.bases.scratch.options import Options
from obuild.errors import UsageError
from obuild.guests.profile import Card
from obuild.host import failpoints, process
from obuild.host.fs import fsync
from obuild.host.qemu_img import copy, pack

#: See `Kind.parse`.
parse = scratch_options.parse


def unpinned(recipe: Recipe) -> str:
    """See `Kind.unpinned`."""
    pinned = recipe.packages and {"date", "index"} <= recipe.archive.keys()
    return "" if pinned else "nobody has pinned its packages; obuild base make --lock does"


def seeds(recipe: Recipe, public_key: str, folder: Path) -> tuple[Path, ...]:
    """See `Kind.seeds`. No guest is booted."""
    return ()


def make(recipe: Recipe, out: Path, making: Making) -> Card:
    """See `Kind.make`."""
    options: Options = recipe.options
    if making.watch:
        raise UsageError("--watch: no guest runs while a base image of this kind is made")
    _check_host(recipe)
    with ExitStack() as stack:
        beside = stack.enter_context(work_folder.folder_in(out.parent))
        # For a plain user, mmdebstrap works under another uid, which cannot enter a private home folder.
        reached = os.geteuid() == 0 or all(above.stat().st_mode & 0o001 for above in beside.resolve().parents)
        work = beside if reached else stack.enter_context(work_folder.folder_in(work_folder.VAR_TMP.resolve()))
        making.say(f"{recipe.name}: installing {len(options.packages)} packages of Debian {options.suite}")
        disk = mmdebstrap.run(recipe, work, making)
        making.say(f"{recipe.name}: making the disk bootable")
        layouts.of(recipe).make_bootable(recipe, disk, work)
        making.say(f"{recipe.name}: packing the image")
        packed = beside / "packed.qcow2"
        pack(disk, packed)
        fsync(packed)
        card = _with_key_blocks(recipe.card, work)
        if card.firmware == "kernel":
            card = replace(card, cmdline=f"root={root_partition.DEVICE} rw {options.cmdline}".strip())
        for suffix, path in layouts.of(recipe).beside(recipe, work).items():
            copy(path, beside / suffix)
            (beside / suffix).chmod(0o644)
            fsync(beside / suffix)
            (beside / suffix).replace(out.with_suffix(suffix))
        failpoints.reach("make.packed")
        packed.replace(out)
    return card


def _with_key_blocks(card: Card, work: Path) -> Card:
    """The card that says where on the disk a store puts its keys; as it is if nobody can log in."""
    login_key = (work / "login-key").read_text().strip()
    if not login_key:
        return card
    where = [
        ext4.key_block(work / "disk.raw", path, start=root_partition.START)
        for path in (login_key, root_files.HOST_KEY)
    ]
    return replace(card, authorized_keys=where[0], host_key=where[1])


def _check_host(recipe: Recipe) -> None:
    """Complain about all that is missing before anything is downloaded."""
    layouts.of(recipe).check_host(recipe)
    for program in ("mmdebstrap", "qemu-img", *ext4.PROGRAMS, *recipe.options.tools):
        process.require(program)
    if recipe.options.presets and not mmdebstrap_hook.is_native(recipe):
        process.require("systemctl")
    process.require_file(apt.KEYRING, "debian-archive-keyring")
