"""Make a base image again and compare the two."""

from __future__ import annotations

from pathlib import Path

from obuild.bases import catalog, inputs, recipe, record, work_folder
from obuild.bases.all import KINDS
from obuild.bases.kind import Say, digest
from obuild.bases.sources import Choices
from obuild.errors import UsageError
from obuild.host import disk_content, qemu_img
from obuild.store.base_images import SEALED
from obuild.store.layers import Store


def again(store: Store, name: str, *, say: Say) -> tuple[str, str]:
    """Make a base image again, and return the digests of its disk and of the new one, which is thrown away.

    If only the sealed disks beside them differ, the digests are theirs.

    UsageError if the image was not made here, if its recipe is gone or has changed since, or if the archive no
    longer has the packages of the lock file. The image and its record stay as they are.
    """
    image = catalog.image_path(store, catalog.checked(name))
    if image is None:
        raise catalog.unknown(store, name)
    made = record.read(image)
    path = record.origin(made) if made else None
    if made is None or path is None:
        raise UsageError(f"base image {name!r} cannot be made again: its recipe is not known here")
    if why := record.changed(made):
        raise UsageError(f"base image {name!r} cannot be made again: {why}")
    plan = recipe.load(path, Choices(made.profile, made.values), name=name)
    if digest(plan) != made.digest:  # ids in the image follow from it
        raise UsageError(f"base image {name!r} cannot be made again: another version of obuild has made it")

    making, _ = inputs.prepare(store, plan, say=say, pins="use" if plan.packages else "")
    with work_folder.folder_in(work_folder.VAR_TMP.resolve()) as folder:
        out = folder / f"{name}.qcow2"
        KINDS[plan.kind].make(plan, out, making)
        disks = [(image, out)]
        if (sealed := image.with_suffix(SEALED)).is_file():
            disks.append((sealed, out.with_suffix(SEALED)))
        digests = [(_digest(before, folder), _digest(now, folder)) for before, now in disks]
    return next((pair for pair in digests if pair[0] != pair[1]), digests[0])


def _digest(disk: Path, folder: Path) -> str:
    return disk_content.digest(qemu_img.inspect(disk), folder)
