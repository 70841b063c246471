"""Replace a base image by one with a larger disk."""

from __future__ import annotations

from pathlib import Path

from obuild.bases.catalog import checked, image_path
from obuild.bases.growing import grow
from obuild.errors import UsageError
from obuild.host import locks, qemu_img
from obuild.store.base_images import IMAGES, MADE, SEALED, SUFFIXES
from obuild.store.layers import Store
from obuild.store.usage import storage_errors


def resize_base(store: Store, name: str, size: int) -> Path:
    """Make the disk of a base image `size` bytes. Layers that were built on it stay as they are.

    The base is no longer what its recipe made, so its record goes. Errors as for `growing.grow`; then nothing has
    changed.
    """
    with locks.file_lock(store.places.lock(checked(name))):
        image = image_path(store, name)
        if image is None:
            raise UsageError(f"there is no base image {name!r}")
        if image.with_name(f"{name}{SEALED}").exists():
            raise UsageError(f"{name} has a sealed disk, which cannot grow", hint="set size in its recipe")
        with storage_errors(store.root), store.places.staged(name) as folder:
            for suffix in SUFFIXES:
                place = store.places.place(name, suffix)
                if place.exists() and suffix not in (MADE, *IMAGES):
                    qemu_img.copy(place, folder / place.name)
            grown = folder / f"{name}.qcow2"
            grow(image, grown, size)
        return store.base_image / grown.name
