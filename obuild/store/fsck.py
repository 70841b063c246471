"""Check a store against every law, describe each finding, and repair most of them.

Layers can be built again, so a repair removes a damaged layer and all layers built on it. Files that are not
obuild's are moved to lost+found/ and never removed. Builds may run meanwhile: nothing that a living process owns
is touched.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from obuild.errors import ObuildError, ProcessError, UsageError
from obuild.guests import profile
from obuild.host import locks, qemu_img, shortage
from obuild.host.fs import discard
from obuild.host.regular import is_file, is_folder, kind, open_file, read_bytes
from obuild.plan.keys import LayerId
from obuild.store import builds, caches, format, mtree, parts, removal, unpacked, usage, warm
from obuild.store.base_images import IMAGES, SUFFIXES
from obuild.store.downloads import UNFINISHED
from obuild.store.index import Index
from obuild.store.layers import Layer, Store

_CACHE = re.compile(r"c-.+", re.DOTALL)

#: What obuild puts into each part: names, and the check of the file's type. A key may be a symlink to a user's.
_OURS: tuple[tuple[str, str, Callable[[Path], bool]], ...] = (
    ("result", parts.ID.pattern, is_folder),
    ("result-tmp", parts.DRAFT.pattern, is_folder),
    ("tags", f"{parts.TAG.pattern}|{parts.NEW_TAG.pattern}", is_file),
    ("flat", parts.ID.pattern, is_folder),
    ("cache", _CACHE.pattern, is_folder),
    ("cache-tmp", parts.COPY.pattern, is_folder),
    ("warm", parts.ID.pattern, is_folder),
    ("outbox", parts.ID.pattern, is_folder),
    ("warm-tmp", parts.MACHINE.pattern, is_folder),
    ("downloads", parts.DOWNLOAD.pattern, is_file),
    ("state", r"\.?(?:digests|accel|qemu|remotes)\.json(?:\..+)?", is_file),
    ("state/builds", builds.NAME.pattern, is_file),
    ("state/db", r".+", is_file),
    ("state/failed", parts.ID.pattern, is_file),
    ("state/locks", r".+\.lock", is_file),
    ("state/manifests", parts.MEMO.pattern, is_file),
    ("state/screens", r".+\.png(?:\.part)?", is_file),
    ("state/ssh", r".+", Path.is_file),
    ("state/uploads", parts.UPLOAD.pattern, is_file),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong in a store.

    `where` is a path in the store; `repair` says what `mend` does, "" if nothing can be done.
    """

    where: str
    what: str
    repair: str = ""
    mend: Callable[[Store], object] | None = field(default=None, repr=False, compare=False)


def repair(store: Store, finding: Finding) -> str:
    """Repair a finding; returns "repaired", or why it could not be."""
    if finding.mend is None:
        return "cannot be repaired"
    try:
        finding.mend(store)
    except ObuildError as error:
        return f"not repaired: {error}"
    except OSError as error:
        return f"not repaired: {error.strerror}"
    return "repaired"


def check(
    store: Store, *, read_data: bool = False, progress: Callable[[int, int], object] = lambda done, total: None
) -> Iterator[Finding]:
    """Check everything. With `read_data`, read every byte of every layer and cache.

    `progress` hears how many bytes of the layers have been read, and how many there are.
    """
    yield from _strangers(store)
    damaged = set()
    for finding in _layers(store, read_data=read_data, progress=progress):
        damaged.add(Path(finding.where).name)
        yield finding
    yield from _tags(store)
    yield from _flats(store, read_data=read_data)
    yield from _states(store, read_data=read_data)
    yield from _rows(store, damaged)
    yield from _leftovers(store)
    yield from _bases(store)
    yield from _caches(store, read_data=read_data)
    if read_data:
        yield from _downloads(store)
    yield from _memos(store)


# -- what is not ours


def _strangers(store: Store) -> Iterator[Finding]:
    """Everything with a name that obuild does not use there, or with the wrong type for its name."""
    for part, name, is_right in _OURS:
        for path in _entries(store.root / part):
            if f"{part}/{path.name}" in parts.LATER or f"{part}/{path.name}" in parts.PARTS:
                continue
            if not (re.fullmatch(name, path.name, re.DOTALL) and is_right(path)) and os.path.lexists(path):
                yield _stray(store, path)


# -- layers


def _layers(store: Store, *, read_data: bool, progress: Callable[[int, int], object]) -> Iterator[Finding]:
    there = set(store.ids())
    sizes = {name: usage.within(store.result / name) for name in there} if read_data else {}
    done, total = 0, sum(sizes.values())
    for name in sorted(there):
        progress(done, total)
        done += sizes.get(name, 0)
        layer = store.layer(LayerId(name))
        problems = list(_layer(layer, there, read_data=read_data))
        if problems and is_folder(layer.path):  # else it was just removed, or is not a layer
            yield Finding(
                f"result/{name}",
                "; ".join(problems),
                "remove it, its tags, and all layers built on it: the next build makes them again",
                _remove_layer(layer.id),
            )


def _layer(layer: Layer, there: set[LayerId], *, read_data: bool) -> Iterator[str]:
    """The problems of one layer."""
    try:
        key = read_bytes(layer.path / "key")
    except OSError as error:
        shortage.see(error)
        yield f"its key cannot be read: {error.strerror}"
        return
    if hashlib.sha256(key).hexdigest() != layer.id:
        yield "its key does not match its id"
        return
    parent = layer.parent
    if parent is not None and parent not in there:
        yield f"its parent {parent} is not in the store"
    damage = mtree.damage(layer.path, read_data=read_data)
    yield from damage
    if not damage:
        yield from _image(layer, parent)


def _image(layer: Layer, parent: LayerId | None) -> Iterator[str]:
    names = (parts.layer_image(parent), parts.flat_image(parent)) if parent else ()
    try:
        backing = qemu_img.backing_file(layer.image)
        if backing not in (map(parts.seen_from_image, names) if names else ("",)):
            yield f"its image is based on {backing or 'nothing'}, not on its parent's image"
        elif backing and not (layer.image.parent / backing).exists():
            yield f"its image is based on {backing}, which is missing"
        else:
            qemu_img.check(layer.image)
    except (UsageError, ValueError, OSError) as error:
        shortage.see(error)
        yield f"its image is damaged: {error}"


def _flats(store: Store, *, read_data: bool) -> Iterator[Finding]:
    """Flattened copies: each belongs to a layer, and only that layer's descendants use it."""
    for folder in _folders(store.flats.folder, parts.ID):
        layer = store.layer(LayerId(folder.name))
        if not is_folder(layer.path):
            yield _unneeded(store, folder, "a flattened copy of a layer that is gone")
        elif damage := mtree.damage(folder, read_data=read_data) or list(_flat_image(store, layer.id)):
            yield Finding(
                _shown(store, folder),
                "; ".join(damage),
                "remove the layer that it is a copy of, its tags, and all layers built on it: "
                "the next build makes them again",
                _remove_layer(layer.id),
            )


def _flat_image(store: Store, id: LayerId) -> Iterator[str]:
    try:
        store.flats.check(id)
        qemu_img.check(store.root / parts.flat_image(id))
    except ProcessError:
        raise  # qemu-img had no memory, for example
    except ObuildError as error:
        yield error.message


def _remove_layer(id: LayerId) -> Callable[[Store], None]:
    def act(store: Store) -> None:
        if removal.delete(store, id, tell=lambda gone: None, untag=True):
            raise ObuildError(f"a build is using {id}", hint="run fsck again after it has ended")
        with suppress(ObuildError), Index(store) as index:  # else the index is checked next
            index.count()

    return act


# -- tags


def _tags(store: Store) -> Iterator[Finding]:
    for path in _entries(store.tags.folder):
        if parts.NEW_TAG.fullmatch(path.name) and is_file(path) and not locks.is_held(store.tags.lock):
            yield _unneeded(store, path, "a file that was never finished")
        elif parts.TAG.fullmatch(path.name) and is_file(path):
            id = store.tags.get(name := store.tags.name(path))
            if id is None or not is_folder(store.result / id):
                what = f"a tag of the layer {id}, which is gone" if id else "a tag without a layer's id"
                yield Finding(_shown(store, path), what, "remove it", partial(_remove_tag, name))


def _remove_tag(name: str, store: Store) -> None:
    store.tags.remove(name, unless=lambda id: store.find(id) is not None)


# -- warm states


def _states(store: Store, *, read_data: bool) -> Iterator[Finding]:
    """Saved machines: each belongs to a layer. An outdated one is not a finding: the next use removes it."""
    for folder in _folders(store.states.folder, parts.ID):
        with locks.folder_lock(folder, shared=True, wait=False) as held:  # else it is being removed
            problem = _state(store, folder, read_data=read_data) if held else ""
        if problem:
            repair = "remove it: the next step on that layer boots"
            yield Finding(_shown(store, folder), problem, repair, _remove_state(LayerId(folder.name)))


def _state(store: Store, folder: Path, *, read_data: bool) -> str:
    if not is_folder(store.result / folder.name):
        return "a saved machine of a layer that is gone"
    return warm.damage(warm.State(folder), read_data=read_data)


def _remove_state(id: LayerId) -> Callable[[Store], None]:
    def act(store: Store) -> None:
        if not store.states.remove(id):
            raise ObuildError(f"a build is using it: {id}", hint="run fsck again after it has ended")

    return act


# -- the index


def _rows(store: Store, damaged: set[str]) -> Iterator[Finding]:
    where = "state/db/db.sqlite"
    try:
        with Index(store) as index:
            for problem in index.problems(damaged):
                yield Finding(where, problem, "correct it from result/", _sync)
    except ObuildError as error:
        yield Finding(where, error.message, "remove it: it is rebuilt from result/", _rebuild)


def _sync(store: Store) -> None:
    with Index(store) as index:
        index.rebuild()


def _rebuild(store: Store) -> None:
    discard(store.state / "db")
    _sync(store)


# -- what a crash or another program left


def _leftovers(store: Store) -> Iterator[Finding]:
    """Drafts, copies, machines and locks without an owner. A build removes all but the locks."""
    kinds = {store.result_tmp: "a draft", store.cache_tmp: "a copy of a cache", store.states.running: "a machine"}
    for path in sorted(store.unfinished()):
        if store.is_rubbish(path):
            what = f"{kinds[path.parent]} that no living process owns"
            yield Finding(_shown(store, path), what, "remove it", partial(_drop, path))
    for lock in _entries(store.locks):
        if locks.is_free(lock):
            what = "a lock file that nobody holds"
            yield Finding(_shown(store, lock), what, "remove it", partial(_remove_lock, lock))


def _remove_lock(lock: Path, store: Store) -> None:
    with locks.file_lock(lock, wait=False):  # once we hold it, leaving the block removes it
        pass


def _drop(path: Path, store: Store) -> None:
    store.drop(path)  # it stays if somebody owns it by now: then it is not rubbish


def _unneeded(store: Store, path: Path, what: str) -> Finding:
    return Finding(_shown(store, path), what, "remove it", lambda store: discard(path))


def _stray(store: Store, path: Path) -> Finding:
    def move(store: Store) -> None:
        lost = store.root / "lost+found"
        lost.mkdir(exist_ok=True)
        number = 0
        while os.path.lexists(place := lost / f"{path.name}{f'.{number}' if number else ''}"):
            number += 1
        path.rename(place)

    what = f"{kind(path)} that obuild has not put there"
    return Finding(_shown(store, path), what, "move it to lost+found/", move)


# -- base images, caches, memos


def _bases(store: Store) -> Iterator[Finding]:
    """Base images belong to the user: problems are reported, not repaired."""
    unfinished = store.places.unfinished()
    images = {path.stem: path for path in _entries(store.base_image) if path.suffix in IMAGES}
    for path in _entries(store.base_image):
        if path in unfinished:
            if not locks.is_held(store.places.lock(path.stem[1:])):
                what = "a base image that was never put in place"
                yield Finding(_shown(store, path), what, "finish it or remove it", partial(_place, path))
        elif path.name.startswith(".") and path.suffix in (".part", ".ready"):
            yield _stray(store, path)
        elif path.suffix in SUFFIXES and path.stem not in images:
            yield Finding(_shown(store, path), "it belongs to a base image that does not exist")
        elif path.suffix in SUFFIXES and not path.is_file():
            yield Finding(_shown(store, path), f"it is {kind(path)} that leads to no file")
    for name, path in images.items():
        if not path.is_file():
            continue
        try:
            qemu_img.inspect(path)
            profile.read(path.with_name(f"{name}.toml"))
        except UsageError as error:
            yield Finding(_shown(store, path), error.message)


def _place(path: Path, store: Store) -> None:
    store.places.sweep()
    if is_folder(path):
        raise ObuildError("a folder is in its place, or a build is making that base", hint="move the folder away")


def _caches(store: Store, *, read_data: bool) -> Iterator[Finding]:
    for folder in _folders(store.caches.folder, _CACHE):
        archive = folder / "cache.tar"
        right = {archive: is_file, unpacked.folder_of(archive): is_folder}
        yield from (_stray(store, path) for path in _entries(folder) if path not in right or not right[path](path))
        if read_data and is_file(archive):
            try:
                caches.check(archive)
            except UsageError as error:
                yield _unneeded(store, folder, f"a cache that {error.message}")


def _downloads(store: Store) -> Iterator[Finding]:
    """Files whose content has changed since they were verified. An unfinished one is not verified yet."""
    for name in store.downloads.names():
        path = store.downloads.folder / name
        algorithm, _, digest = name.partition("-")
        if name.endswith(UNFINISHED):
            continue
        with suppress(FileNotFoundError), open_file(path) as file:
            if hashlib.file_digest(file, algorithm).hexdigest() != digest:
                yield _unneeded(store, path, "a download whose content has changed")


def _memos(store: Store) -> Iterator[Finding]:
    for memo in _entries(store.manifests):
        id = memo.name.partition("-")[0]
        if parts.MEMO.fullmatch(memo.name) and is_file(memo) and not is_folder(store.result / id):
            yield _unneeded(store, memo, "a manifest of a layer that is gone")
    for folder in (store.state, store.manifests, store.ssh, store.uploads):
        for path in _entries(folder):
            if is_file(path) and path.name.startswith("."):
                yield _unneeded(store, path, "a file that was never finished")
    for path in _entries(store.root):
        if is_file(path) and path.name.startswith(f".{format.NAME}."):
            yield _unneeded(store, path, "a file that was never finished")


def _entries(folder: Path) -> Iterable[Path]:
    with suppress(FileNotFoundError):
        return sorted(folder.iterdir())
    return ()


def _folders(folder: Path, name: re.Pattern[str]) -> Iterable[Path]:
    with suppress(FileNotFoundError):
        return sorted(parts.entries(folder, name))
    return ()


def _shown(store: Store, path: Path) -> str:
    return str(path.relative_to(store.root))
