"""Fill a new root with Debian packages, by mmdebstrap, and make a file system of it.

mmdebstrap fills a folder; while it still stands, inside the same namespace, mke2fs copies it into the partition of
a raw disk. So a plain user can make an image, and nothing is left behind when we are interrupted.

For root, the folder is in memory if there is enough of it: dpkg flushes each of its steps to the disk, and a new
root has tens of thousands of files that are removed again.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from obuild.bases.kind import Installed, Making, Recipe
from obuild.bases.scratch import apt, ext4, layouts, mmdebstrap_hook, pins, root_files
from obuild.bases.scratch.options import Options
from obuild.bases.scratch.root_partition import START
from obuild.errors import ProcessError, UsageError
from obuild.guests.profile import DEBIAN_ARCHES, INITRD, KERNEL
from obuild.host import failpoints, memory, process

#: The date for programs that read one while packages are configured. The image's own date is not known yet.
EPOCH = 1_672_531_200

#: In `work`: where mmdebstrap makes the new root, and what the hook lays aside.
_CHROOTS, _LISTS, _DEBS = "tmp", "lists", "debs"

#: With less memory to spare, the new root is on the disk: debian-12 takes 0.6 GB, in bytes.
_LEAST_MEMORY = 2 << 30

#: The kernel and its initial RAM disk, if the hook moves them out of the root.
BOOT = (f"boot{KERNEL}", f"boot{INITRD}")


def run(recipe: Recipe, work: Path, making: Making) -> Path:
    """Unpack the packages into a partition, and return the raw disk, which is not bootable yet.

    UsageError if what the recipe puts into the root does not fit what is there, or if we are root but may not
    mount, as in a container; ProcessError if mmdebstrap fails.
    """
    options: Options = recipe.options
    keep = making.pins == "keep"
    sources = apt.lines(options.mirror or apt.MIRROR, options.suite, updates=options.updates)
    if making.pins == "use":
        sources = (pins.archive(recipe, work, making),)
    try:
        try:
            disk = _filled(recipe, work, sources, keep=keep, memory=(most := _memory()))
        except ProcessError as error:
            if not most or os.strerror(errno.ENOSPC) not in error.message:
                raise
            making.say(f"{recipe.name}: more than fits into memory; once more, on the disk")
            disk = _filled(recipe, work, sources, keep=keep)
    except ProcessError as error:
        if f"unshare failed: {os.strerror(errno.EPERM)}" in error.message:
            raise UsageError(
                f"{recipe.name}: making an image from packages takes the right to mount, and we lack it",
                hint="start the container with --privileged, or add an image from elsewhere (`obuild base add`)",
            ) from error
        if complaint := (work / "complaint").read_text().strip():
            raise UsageError(f"{recipe.name}: {complaint}") from None
        if making.pins == "use":
            pins.see_all_are_locked(recipe)
        raise
    failpoints.reach("make.filled")
    found = packages_in(work)
    kept = (work / _LISTS, work / _DEBS)
    making.installed(pins.keep(found, *kept, making, mirror=options.mirror) if keep else Installed(found))
    epoch = int((work / "epoch").read_text())
    ext4.set_times(disk, start=START, epoch=epoch)
    return disk


def _filled(recipe: Recipe, work: Path, sources: Sequence[str], *, keep: bool, memory: int = 0) -> Path:
    """Call mmdebstrap, and return the disk. What an earlier call has left in `work` is written again."""
    _write_inputs(recipe, work, keep=keep)
    disk = work / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(recipe.size)
    taken = (*BOOT, *layouts.of(recipe).TAKEN)
    for name in (disk.name, "epoch", "packages", "login-key", "complaint", *taken):
        (work / name).touch()
        (work / name).chmod(0o666)
    for name, mode in ((_CHROOTS, 0o1777), (_LISTS, 0o1777), (_DEBS, 0o1777), ("bare", 0o755)):
        (work / name).mkdir(exist_ok=True)
        (work / name).chmod(mode)
    process.run(
        argv(recipe, work / "hook", sources, root=os.geteuid() == 0, memory=memory),
        env={
            "TMPDIR": str(work / _CHROOTS),
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
            "SOURCE_DATE_EPOCH": str(EPOCH),
        },
    )
    return disk


def _memory() -> int:
    """How much memory the new root may take, in bytes: half of what is there; 0 if it has to be on the disk."""
    half = memory.available() // 2
    return half if os.geteuid() == 0 and half >= _LEAST_MEMORY else 0


def argv(recipe: Recipe, hook: Path, sources: Sequence[str], *, root: bool, memory: int = 0) -> list[str | Path]:
    """The command that takes packages from `sources`, lines of sources.list, and has `hook` make a disk.

    With `memory`, TMPDIR is hidden by a file system in memory of at most so many bytes.
    """
    options: Options = recipe.options
    # "extract" configures nothing, so it has no later hook to offer.
    when = "extract" if options.variant == "extract" else "customize"
    # Root's mounts and processes must not outlive us: they end with this namespace, it ends with `unshare`, and
    # `unshare` with us. Those of a plain user may run on for a while; see `work_folder`.
    ends = ["setpriv", "--pdeathsig", "KILL", "--"]
    shell = ["unshare", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child", "--"]
    hide = f'mount -t tmpfs -o mode=1777,size={memory} chroots "$TMPDIR" && exec "$@"'
    return [
        *((*ends, *shell) if root else ()),
        *(("sh", "-c", hide, "sh") if memory else ()),
        "mmdebstrap",
        f"--mode={'root' if root else 'unshare'}",
        f"--variant={options.variant}",
        "--format=null",
        # The hook cleans up, because that must happen before the disk is made. The keyring is given, not detected.
        "--skip=cleanup,check/signed-by,essential/unlink",
        f"--keyring={apt.KEYRING}",
        f"--architectures={DEBIAN_ARCHES.get(recipe.card.arch, recipe.card.arch)}",
        '--aptopt=Acquire::Languages "none"',
        # The hook says which they were.
        '--aptopt=APT::Keep-Downloaded-Packages "true"',
        *(f"--aptopt={line}" for line in apt.config(sources)),
        "--dpkgopt=force-unsafe-io",
        f"--include={','.join(options.packages)}",
        *(f"--setup-hook={hook}" for hook in (mmdebstrap_hook.MERGE_USR, mmdebstrap_hook.HOST_KEYS)),
        f"--{when}-hook={hook}",
        options.suite,
        "-",
        *sources,
    ]


def packages_in(work: Path) -> dict[str, str]:
    """The digest of each package in the image, by NAME_VERSION_ARCH."""
    found = (line.split("  ") for line in (work / "packages").read_text().splitlines())
    return {unquote(name.removesuffix(".deb")): f"sha256:{digest}" for digest, name in found}


def _write_inputs(recipe: Recipe, work: Path, *, keep: bool) -> None:
    """What the hook reads. It may be another user that reads, so nothing here is secret."""
    options: Options = recipe.options
    files = (*options.files, *layouts.of(recipe).files(recipe))
    for number, tree in enumerate(options.trees):
        root_files.write_tree(tree, work / f"tree-{number}.tar")
    root_files.write_files(files, work / "files.tar")
    for path in work.glob("*.tar"):
        path.chmod(0o644)
    texts = {
        **mmdebstrap_hook.inputs(),
        "folders": "".join(f"{folder}\n" for folder in root_files.folders_of(files, options.trees)),
        "script": options.script,
        # The guest's sources.list: it has Debian's own archive, wherever the packages come from.
        "sources.list": "".join(f"{x}\n" for x in apt.lines(apt.MIRROR, options.suite, updates=options.updates)),
        "hook": mmdebstrap_hook.text(recipe, work, keep=keep),
    }
    for name, text in texts.items():
        (work / name).write_text(text, encoding="utf-8")
        (work / name).chmod(0o755 if name == "hook" else 0o644)
