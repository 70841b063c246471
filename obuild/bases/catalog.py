"""The base images of a store: look one up, check its pin, list them, add and remove one."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from obuild.bases import digests, record
from obuild.bases.record import Record
from obuild.errors import UsageError
from obuild.guests import profile
from obuild.guests.profile import INITRD, KERNEL, NVRAM, Card
from obuild.host import locks, qemu_img, stamp
from obuild.host.regular import read_bytes, read_text
from obuild.plan.keys import SHA256
from obuild.plan.steps import Base, Beside
from obuild.store.base_images import IMAGES, PCRS, SEALED
from obuild.store.layers import Store
from obuild.store.usage import storage_errors

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+:-]*")
_PIN = re.compile(rf"sha256:{SHA256}")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Found:
    """A base image file in the store. `size` is in bytes on disk; `made` is None if the image was added."""

    name: str
    path: Path
    card: Card
    size: int
    made: Record | None


def stale(image: Path) -> str:
    """Return why a base image is out of date, and what to do; "" if its recipe would make the same image."""
    made = record.read(image)
    why = record.changed(made) if made else ""
    return f"base image {image.stem!r} is stale: {why} (obuild base make {image.stem} --if-changed)" if why else ""


def look(store: Store, reference: str) -> Base | None:
    """Return the base that `reference` (NAME, or NAME@sha256:HEX) names, or None if there is only a recipe for it.

    UsageError, listing what there is, if there is neither; or if its content is not what the pin says.
    """
    name, _ = split(reference)
    path = image_path(store, name)
    if path is not None:
        return read(store, path, reference)
    from obuild.bases import sources

    if sources.find(name) is None:
        raise unknown(store, name)
    return None


def read(store: Store, path: Path, reference: str) -> Base:
    """Return the base in the file `path`. UsageError if `reference` pins another one."""
    name, pin = split(reference)
    about = profile.read(card_path(path))
    seen = stamp.of(path)
    files = beside(path, about)
    digest = digests.of_file(store, path, seen)
    if files:
        # The machine boots from these files, so they affect every result.
        parts = (digest, *(digests.of_file(store, file.path, file.stamp) for file in files), about.cmdline)
        digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    if pin and pin != digest:
        raise UsageError(
            f"the base image {name!r} is not the one that the spec pins",
            hint=f"it is {name}@sha256:{digest}",
        )
    return Base(name, path, digest, seen, about, files)


def beside(image: Path, about: Card) -> tuple[Beside, ...]:
    """Return the files that a machine needs besides the disk: a kernel and its initrd, or UEFI's variables.

    Only the kernel is required: UsageError if it is missing.
    """
    suffixes = {"kernel": (KERNEL, INITRD), "uefi": (NVRAM,)}.get(about.firmware, ())
    paths = [image.with_suffix(suffix) for suffix in suffixes]
    if about.firmware == "kernel" and not paths[0].is_file():
        raise UsageError(f"{paths[0]} is missing: the card of {image.stem!r} says that QEMU loads its kernel")
    return tuple(Beside(f"image{path.suffix}", path, stamp.of(path)) for path in paths if path.is_file())


def listing(store: Store) -> list[Found]:
    """Return the base images in the store, sorted by name."""
    paths = [path for name in _names(store) if (path := image_path(store, name))]
    return [
        Found(path.stem, path, profile.read(card_path(path)), path.stat().st_blocks * 512, record.read(path))
        for path in paths
    ]


def with_digest(store: Store, digest: str) -> Iterator[Base]:
    """The base images in the store with this content; damaged ones, or those without their kernel, are none."""
    for image in listing(store):
        with suppress(UsageError):
            found = look(store, image.name)
            if found is not None and found.digest == digest:
                yield found


def measured(image: Path) -> list[str]:
    """Return lines about a base image's sealed disk, with its root hash and a TPM's values; [] if it has none."""
    about = image.with_suffix(PCRS)
    if not about.is_file():
        return []
    known = json.loads(read_text(about))
    pcrs = [f"PCR {number}: {value}" for number, value in known["pcrs"]["sha256"].items()]
    return [f"sealed {image.with_suffix(SEALED)}", f"root hash: {known['root_hash']}", *pcrs]


def _names(store: Store) -> list[str]:
    """Return the names of the base images in the store, even if their cards cannot be read."""
    names = {path.stem for path in store.base_image.iterdir() if not path.name.startswith(".")}
    return [name for name in sorted(names) if image_path(store, name)]


def image_path(store: Store, name: str) -> Path | None:
    """Return the file of a base image, or None if the store does not have it."""
    candidates = (store.base_image / f"{name}{suffix}" for suffix in IMAGES)
    return next((path for path in candidates if path.is_file()), None)


def add(
    store: Store,
    file: Path,
    name: str,
    *,
    about: Card,
    key: Path | None,
    boot: Sequence[Path] = (),
    size: int = 0,
    force: bool = False,
) -> Path:
    """Add an image made elsewhere as the base `name`, with the private key for its login.

    `boot` are the kernel and the initial RAM disk, if the card says that QEMU loads them. With a `size` in bytes,
    the disk grows. UsageError if the file is no disk, or cannot grow, or if the name is taken and not `force`.
    """
    from obuild.executors.qemu.ssh import load_key

    for path in (file, *boot):
        if not path.is_file():
            raise UsageError(f"there is no image file {path}")
    with locks.file_lock(store.places.lock(checked(name))):
        if image_path(store, name) and not force:
            raise UsageError(f"there is a base image {name!r} already", hint="--force replaces it")
        image = qemu_img.inspect(file)
        with storage_errors(store.root), store.places.staged(name) as folder:
            if key is not None:
                load_key(key)
                about = replace(about, key=str(_own_key(store, name).relative_to(store.root)))
                _copy_key(key, folder / f"{name}.key")
            out = folder / f"{name}.{'qcow2' if size or image.format == 'qcow2' else 'img'}"
            for path, suffix in zip(boot, (KERNEL, INITRD), strict=False):
                qemu_img.copy(path, out.with_suffix(suffix))
            if size:
                from obuild.bases import growing  # late: seldom needed

                growing.grow(file, out, size)
            else:
                qemu_img.copy(file, out)
            card_path(out).write_text(profile.dump(about))
        return store.base_image / out.name


def remove(store: Store, name: str) -> None:
    """Remove a base image, but not the layers built on it. UsageError if there is none."""
    with locks.file_lock(store.places.lock(checked(name))):
        if image_path(store, name) is None:
            raise unknown(store, name)
        store.places.remove(name)


def key_path(store: Store, about: Card) -> Path:
    """Return the private key for guests with this card."""
    return store.root / about.key if about.key else store_key(store)


def store_key(store: Store) -> Path:
    """Return the private key of this store."""
    return store.ssh / "id_ed25519"


def split(reference: str) -> tuple[str, str]:
    name, at, pin = reference.partition("@")
    if at and not _PIN.fullmatch(pin):
        raise UsageError(f"{reference!r}: what follows @ must be sha256: and 64 hex digits")
    return checked(name), pin.removeprefix("sha256:")


def checked(name: str) -> str:
    if not _NAME.fullmatch(name) or ".." in name:
        raise UsageError(
            f"{name!r} cannot be the name of a base image",
            hint="only letters, digits and . _ - + : because it names a file in the store's base-image/",
        )
    return name


def unknown(store: Store, name: str) -> UsageError:
    from obuild.bases import sources

    images = _names(store)
    recipes = [known for known in sources.names() if known not in images]
    there = f"in the store: {', '.join(images) or 'none'}; that can be made: {', '.join(recipes) or 'none'}"
    return UsageError(f"unknown base image {name!r}; {there}", hint="`obuild base add FILE --name NAME` adds one")


def card_path(image: Path) -> Path:
    return image.with_suffix(".toml")


def _own_key(store: Store, name: str) -> Path:
    return store.ssh / f"{name}.key"


def _copy_key(key: Path, out: Path) -> None:
    out.touch(mode=0o600)
    out.write_bytes(read_bytes(key, follow=True))
