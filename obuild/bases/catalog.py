"""Base images of a store: find one by name, check its pin, make it from a recipe, take one from elsewhere."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from obuild.bases import record
from obuild.bases.record import Record
from obuild.errors import UsageError
from obuild.events import Phase
from obuild.guests import profile
from obuild.guests.profile import INITRD, KERNEL, Card
from obuild.host import locks, qemu_img, stamp
from obuild.host.fs import replace_text
from obuild.host.process import CancelScope
from obuild.host.regular import open_file, read_bytes, read_text
from obuild.host.stamp import Stamp
from obuild.plan.keys import SHA256
from obuild.plan.steps import Base, Beside
from obuild.store.base_images import IMAGES
from obuild.store.layers import Store
from obuild.store.usage import storage_errors

if TYPE_CHECKING:
    from obuild.bases.sources import Choices

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


def find(
    store: Store,
    reference: str,
    *,
    say: Say,
    making: Callable[[str], AbstractContextManager[Phase | str]] = nullcontext,
    scope: CancelScope | None = None,
) -> Base:
    """The base that `reference` (NAME, or NAME@sha256:HEX) names, made first if there is only a recipe for it.

    UsageError, listing what there is, if there is neither; or if its content is not what the pin says. One that is
    stale is said to be, and used. While a base is made, `making` is entered with its name, and hears of downloads;
    cancelling `scope` ends a machine that makes it.
    """
    name, _ = _split(reference)
    found = look(store, reference)
    if found is None:
        say(f"base image {name!r} is not in the store yet; making it from its recipe")
        with making(name) as phase:
            path, _ = make(store, name, say=say, progress=_advancing(phase), scope=scope)
        return _read(store, path, reference)
    if why := stale(found.path):
        say(why)
    return found


def _advancing(phase: Phase | str) -> Callable[[int, int], object]:
    """What tells a phase of the bytes of downloads."""
    last = 0

    def progress(done: int, total: int) -> None:
        nonlocal last
        if isinstance(phase, Phase) and done > last:
            phase.advance(done - last)
        last = done

    return progress


def stale(image: Path) -> str:
    """Why a base image is not what its recipe would make now, and what to do; "" if it is."""
    made = record.read(image)
    why = record.changed(made) if made else ""
    return f"base image {image.stem!r} is stale: {why} (obuild base make {image.stem} --if-changed)" if why else ""


def look(store: Store, reference: str) -> Base | None:
    """As `find`, but nothing is made: None if there is only a recipe."""
    name, _ = _split(reference)
    path = image_path(store, name)
    if path is not None:
        return _read(store, path, reference)
    from obuild.bases import sources

    if sources.find(name) is None:
        raise _unknown(store, name)
    return None


def _read(store: Store, path: Path, reference: str) -> Base:
    """The base in the file `path`. UsageError if it is not the one that `reference` pins."""
    name, pin = _split(reference)
    about = profile.read(_card_path(path))
    seen = stamp.of(path)
    files = beside(path, about)
    digest = _digest(store, path, seen)
    if files:
        # The machine boots from these files and not from the disk: what they are changes what is built.
        parts = (digest, *(_digest(store, file.path, file.stamp) for file in files), about.cmdline)
        digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    if pin and pin != digest:
        raise UsageError(
            f"the base image {name!r} is not the one that the spec pins",
            hint=f"it is {name}@sha256:{digest}",
        )
    return Base(name, path, digest, seen, about, files)


def beside(image: Path, about: Card) -> tuple[Beside, ...]:
    """The kernel, and its initial RAM disk if there is one. UsageError if a kernel is needed and not there."""
    if about.firmware != "kernel":
        return ()
    paths = (image.with_suffix(KERNEL), image.with_suffix(INITRD))
    if not paths[0].is_file():
        raise UsageError(f"{paths[0]} is missing: the card of {image.stem!r} says that QEMU loads its kernel")
    return tuple(Beside(f"image{path.suffix}", path, stamp.of(path)) for path in paths if path.is_file())


def listing(store: Store) -> list[Found]:
    """The base images in the store, by name."""
    paths = [path for name in _names(store) if (path := image_path(store, name))]
    return [
        Found(path.stem, path, profile.read(_card_path(path)), path.stat().st_blocks * 512, record.read(path))
        for path in paths
    ]


def _names(store: Store) -> list[str]:
    """What the base images in the store are called; their cards may be unreadable."""
    names = {path.stem for path in store.base_image.iterdir() if not path.name.startswith(".")}
    return [name for name in sorted(names) if image_path(store, name)]


def image_path(store: Store, name: str) -> Path | None:
    """The file of a base image, if the store has it."""
    candidates = (store.base_image / f"{name}{suffix}" for suffix in IMAGES)
    return next((path for path in candidates if path.is_file()), None)


def make(
    store: Store,
    reference: str,
    *,
    say: Say,
    name: str = "",
    choices: Choices | None = None,
    again: Literal["no", "changed", "yes"] = "no",
    trust: bool = False,
    locked: bool = False,
    progress: Callable[[int, int], object] = lambda done, total: None,
    scope: CancelScope | None = None,
) -> tuple[Path, bool]:
    """Make a base image from a recipe, named or in a file. Returns where it is, and whether it was made now.

    It is called `name`, or like its recipe. One that is there already stays, unless `again` says otherwise:
    "changed" makes it if its recipe would give another one now, with the last time's choices if there are none.
    With `trust`, downloads without a digest are taken as they come, and their digests kept in the recipe's lock
    file; with `locked`, a recipe is refused that does not say the digest of every input. `progress` hears how many
    bytes of a download are there, and how many there will be, or 0.
    If two processes want the base, one makes it and the other waits. UsageError if there is no such recipe.
    """
    from obuild.bases import lockfile, recipe, sources
    from obuild.bases.all import KINDS
    from obuild.bases.download import Remote, fetch
    from obuild.bases.kind import Making, digest
    from obuild.executors.qemu.ssh import make_key

    news: list[str] = []

    def get(remote: Remote) -> Path:
        found, known = fetch(remote, store.downloads, trust=trust, say=say, progress=progress)
        if not remote.digest:
            lock = lockfile.path_of(path)
            lockfile.write(lock, {**lockfile.read(lock), remote.urls[0]: known})
            news.append(known)
        return found

    path = recipe_path(reference)
    name = _checked(name or path.stem)
    with locks.file_lock(store.places.lock(name)):
        existing = image_path(store, name)
        made = record.read(existing) if existing else None
        if choices is None:
            last = made if again == "changed" else None
            choices = sources.Choices(last.profile, last.values) if last else sources.Choices()
        if existing and (again == "no" or (again == "changed" and made is None)):
            return existing, False  # one that was added has no recipe: it is the user's
        plan = recipe.load(path, choices, name=name)
        if locked and (what := KINDS[plan.kind].unpinned(plan.options)):
            raise UsageError(f"{path.stem} cannot be made with --locked: {what}")
        if existing and made and again == "changed" and made.digest == digest(plan):
            return existing, False
        with storage_errors(store.root), store.places.staged(name) as folder:
            out = folder / f"{name}.qcow2"
            making = Making(store, make_key(store_key(store)), say, get, scope or CancelScope())
            card = KINDS[plan.kind].make(plan, out, making)
            _card_path(out).write_text(profile.dump(card))
            if news:  # the digest of all inputs is known only now
                plan = recipe.load(path, choices, name=name)
            record.write(out, plan, choices, when=time.time())
        return store.base_image / out.name, True


def recipe_path(reference: str) -> Path:
    """The file of a recipe: one that comes with obuild, by its name, or any file that ends in .toml."""
    from obuild.bases import sources
    from obuild.bases.table import nearest

    if reference.endswith(".toml") or "/" in reference:
        return Path(reference)
    path = sources.find(_checked(reference))
    if path is None:
        hint = f"a file? write ./{reference}.toml; {nearest(reference, sources.names())}"
        raise UsageError(f"there is no recipe {reference!r}", hint=hint)
    return path


def add(
    store: Store,
    file: Path,
    name: str,
    *,
    about: Card,
    key: Path | None,
    boot: Sequence[Path] = (),
    force: bool = False,
) -> Path:
    """Take an image made elsewhere as the base `name`, with the private key that opens it.

    `boot` are the kernel and the initial RAM disk, if the card says that QEMU loads them. UsageError if the file
    is no disk, or if the name is taken and not `force`.
    """
    from obuild.executors.qemu.ssh import load_key

    for path in (file, *boot):
        if not path.is_file():
            raise UsageError(f"there is no image file {path}")
    with locks.file_lock(store.places.lock(_checked(name))):
        if image_path(store, name) and not force:
            raise UsageError(f"there is a base image {name!r} already", hint="--force replaces it")
        image = qemu_img.inspect(file)
        with storage_errors(store.root), store.places.staged(name) as folder:
            if key is not None:
                load_key(key)
                about = replace(about, key=str(_own_key(store, name).relative_to(store.root)))
                _copy_key(key, folder / f"{name}.key")
            out = folder / f"{name}.{'qcow2' if image.format == 'qcow2' else 'img'}"
            for path, suffix in zip(boot, (KERNEL, INITRD), strict=False):
                qemu_img.copy(path, out.with_suffix(suffix))
            qemu_img.copy(file, out)
            _card_path(out).write_text(profile.dump(about))
        return store.base_image / out.name


def remove(store: Store, name: str) -> None:
    """Remove a base image; layers that were built on it stay. UsageError if there is none."""
    with locks.file_lock(store.places.lock(_checked(name))):
        if image_path(store, name) is None:
            raise _unknown(store, name)
        store.places.remove(name)


def key_path(store: Store, about: Card) -> Path:
    """The private key that opens guests of this card."""
    return store.root / about.key if about.key else store_key(store)


def store_key(store: Store) -> Path:
    """The login key that is baked into the images made for this store."""
    return store.ssh / "id_ed25519"


def _split(reference: str) -> tuple[str, str]:
    name, at, pin = reference.partition("@")
    if at and not _PIN.fullmatch(pin):
        raise UsageError(f"{reference!r}: what follows @ must be sha256: and 64 hex digits")
    return _checked(name), pin.removeprefix("sha256:")


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name) or ".." in name:
        raise UsageError(
            f"{name!r} cannot be the name of a base image",
            hint="letters, digits and . _ - + : only, for it names a file in the store's base-image/",
        )
    return name


def _unknown(store: Store, name: str) -> UsageError:
    from obuild.bases import sources

    images = _names(store)
    recipes = [known for known in sources.names() if known not in images]
    there = f"in the store: {', '.join(images) or 'none'}; that can be made: {', '.join(recipes) or 'none'}"
    return UsageError(f"unknown base image {name!r}; {there}", hint="`obuild base add FILE --name NAME` adds one")


def _card_path(image: Path) -> Path:
    return image.with_suffix(".toml")


def _digest(store: Store, path: Path, seen: Stamp) -> str:
    """sha256 of a file, read once for each path, inode, size and time of change.

    An image that is read for the first time is checked to be a sound disk, so that a bad one is found early.
    """
    memo = store.state / "digests.json"
    kept = _read_memo(memo)
    entry = kept.get(path.name)
    if isinstance(entry, list) and entry[:3] == list(seen) and _is_sha256(entry[3:]):
        return str(entry[3])
    if path.suffix not in (KERNEL, INITRD):
        qemu_img.inspect(path)
    with open_file(path, follow=True) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if store.writable:
        replace_text(memo, json.dumps({**_read_memo(memo), path.name: [*seen, digest]}))
    return digest


def _is_sha256(rest: list[object]) -> bool:
    """Whether this is one digest, and nothing else; a damaged memo may hold anything."""
    return len(rest) == 1 and re.fullmatch(SHA256, str(rest[0])) is not None


def _read_memo(memo: Path) -> dict[str, object]:
    """What is remembered; nothing if the file is not there or damaged, for it only saves time."""
    try:
        kept = json.loads(read_text(memo))
    except (OSError, ValueError, RecursionError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _own_key(store: Store, name: str) -> Path:
    return store.ssh / f"{name}.key"


def _copy_key(key: Path, out: Path) -> None:
    out.touch(mode=0o600)
    out.write_bytes(read_bytes(key, follow=True))
