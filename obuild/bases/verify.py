"""Make a base image again and compare the two."""

from __future__ import annotations

from obuild.bases import catalog, inputs, recipe, record, work_folder
from obuild.bases.all import KINDS
from obuild.bases.kind import Say
from obuild.bases.sources import Choices
from obuild.errors import UsageError
from obuild.host import disk_content, qemu_img
from obuild.store.layers import Store


def again(store: Store, name: str, *, say: Say) -> tuple[str, str]:
    """Make a base image again, and return the digests of its disk and of the new one, which is thrown away.

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

    making, _ = inputs.prepare(store, plan, say=say, pins="use" if plan.packages else "")
    with work_folder.folder_in(work_folder.VAR_TMP.resolve()) as folder:
        out = folder / f"{name}.qcow2"
        KINDS[plan.kind].make(plan, out, making)
        before, now = (disk_content.digest(qemu_img.inspect(disk), folder) for disk in (image, out))
    return before, now
