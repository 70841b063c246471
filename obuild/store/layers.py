"""Layers on disk: draft, commit by rename, locks.

STORE/result/ID/{rootfs/image.qcow2, log, key, mtree} is a layer; result-tmp/ID is a draft. A first layer has its
base's kernel, if any, beside the image. The laws (docs/design.md argues them): layers in result/ are complete and
never change; a layer's parent is in result/; the rename is the only commit; a draft whose lock can be taken is
rubbish; removal starts from the leaves; building on a layer takes a shared lock on it, removing it the exclusive
one.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from obuild.errors import ObuildError, StoreError, UsageError
from obuild.host import failpoints, locks, qemu_img, stamp
from obuild.host.fs import discard, fsync, leaving, move_out, owned_folder, touch
from obuild.host.regular import NotAFile, is_file, is_folder, kind, open_file, read_bytes
from obuild.plan import keys
from obuild.plan.keys import LayerId
from obuild.plan.steps import Keyed
from obuild.store import format, mtree, parts
from obuild.store.base_images import Places
from obuild.store.saved import States
from obuild.store.tags import Tags, checked, could_be_id
from obuild.store.usage import storage_errors

if TYPE_CHECKING:  # late: a cached build needs none of them
    from obuild.store.builds import Builds
    from obuild.store.caches import Caches
    from obuild.store.downloads import Downloads
    from obuild.store.flatten import Flats
    from obuild.store.outbox import Outbox

_ID_START = re.compile(r"[0-9a-f]+")

#: The logs of how many failed steps are kept.
FAILED = 20

#: The file that is removed first from a layer that cannot be renamed: without its log it is not used any more.
_FIRST = "log"


class Layer(NamedTuple):
    """A finished step on disk, complete and immutable."""

    id: LayerId
    path: Path

    @property
    def image(self) -> Path:
        return self.path / parts.IMAGE

    @property
    def log(self) -> Path:
        return self.path / "log"

    def open_log(self) -> BinaryIO:
        """Open the step's output for reading. StoreError if that fails; the caller has the layer in use."""
        try:
            return open_file(self.log)
        except OSError as error:
            raise StoreError(
                f"layer {self.id} is damaged: its log cannot be read: {error.strerror}",
                hint="`obuild fsck --repair` removes it and all layers built on it; then build again",
            ) from error

    def stamp(self) -> list[list[int]]:
        """A value that changes when the layer is removed and made again. OSError if it is gone."""
        return [list(stamp.of(self.path / name)) for name in ("key", mtree.NAME)]

    @property
    def key(self) -> str:
        return read_bytes(self.path / "key").decode("utf-8", "surrogateescape")

    @property
    def parent(self) -> LayerId | None:
        """The parent, from the key; None for a base, and if the key is not a regular file."""
        try:
            with open_file(self.path / "key") as file:
                return keys.parent(file.read(keys.HEAD))
        except NotAFile:  # the layer is damaged: nothing can be built on it
            return None


@dataclass(frozen=True, slots=True, eq=False)
class Draft:
    """A layer that is being made; `log` is open for writing. It exists exactly while its lock is held.

    Its image is an overlay on the image `below`, which has the content of the layer `parent`; a base has none.
    `below` is relative to the image's folder, as it is written in the image. A `scratch` is thrown away.
    """

    id: LayerId
    path: Path
    log: BinaryIO
    parent: LayerId | None = None
    below: str = ""
    scratch: bool = False
    started: float = field(default_factory=time.time)

    @property
    def image(self) -> Path:
        return self.path / parts.IMAGE

    def lay(self) -> None:
        """Create the image as an empty overlay, replacing any that a failed machine has left."""
        self.image.unlink(missing_ok=True)
        qemu_img.create_overlay(self.image, self.below)

    def lay_copy(self, overlay: Path) -> None:
        """Create the image from an overlay on the same layer, replacing any that a failed machine has left."""
        self.image.unlink(missing_ok=True)
        qemu_img.copy(overlay, self.image)
        self.image.chmod(0o644)
        if (
            qemu_img.backing_file(self.image) != self.below
        ):  # the layer may have been flattened since, or its flattened copy removed
            qemu_img.rebase(self.image, self.below)


class Store:
    """The folder that builds share. Any number of processes may use it at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.writable = True
        self.result = root / "result"
        self.result_tmp = root / "result-tmp"
        self.base_image = root / "base-image"
        self.cache_tmp = root / "cache-tmp"
        self.state = root / "state"
        self.locks = self.state / "locks"
        self.manifests = self.state / "manifests"
        self.ssh = self.state / "ssh"
        self.uploads = self.state / "uploads"
        self.screens = self.state / "screens"
        self.failed = self.state / "failed"
        self.places = Places(self.base_image, self.ssh, self.locks)
        self.states = States(root / "warm", root / "warm-tmp")
        self.tags = Tags(root / "tags", self.locks / "tags.lock")

    @cached_property
    def flats(self) -> Flats:
        from obuild.store.flatten import Flats

        return Flats(self.root, self.root / "flat", self.result_tmp, self.locks)

    @cached_property
    def caches(self) -> Caches:
        from obuild.store.caches import Caches

        return Caches(self.root, self.root / "cache", self.cache_tmp, self.locks)

    @cached_property
    def downloads(self) -> Downloads:
        from obuild.store.downloads import Downloads

        return Downloads(self.root / "downloads", self.locks)

    @cached_property
    def builds(self) -> Builds:
        from obuild.store.builds import Builds

        return Builds(self.state / "builds")

    @cached_property
    def outbox(self) -> Outbox:
        from obuild.store.outbox import Outbox

        return Outbox(self.root / "outbox")

    # -- opening

    @classmethod
    def open(cls, root: Path, *, create: bool = True, sweep: bool = True) -> Store:
        """Open a store. With `create`, make it if it is new; with `sweep`, remove the rubbish of crashes.

        UsageError if it cannot be made or written to, if one of its parts is not a folder, if it has a newer
        format, or if it is not a store and must not or cannot become one. `root` may have symlinks in it.
        """
        try:
            store = cls(_resolved(root))
            if not parts.is_store(store.root):
                if not create:
                    raise _no_store(root)
                parts.begin(store.root)
            format.check(store.root)
            parts.make(store.root)
            store._see_writable()
            if create:
                format.mark(store.root, store._lock_file("format"))
            if sweep:
                store.sweep()
        except OSError as error:
            where = f"{error.filename}: " if error.filename not in (None, str(store.root)) else ""
            raise UsageError(f"cannot write to the store {root}: {where}{error.strerror}") from error
        return store

    @classmethod
    def look(cls, root: Path) -> Store:
        """Open a store for reading only: nothing is made or swept, and it may be read-only.

        UsageError if it is not a store or lacks a part, if a part is not a folder, or if it has a newer format.
        """
        try:
            store = cls(_resolved(root))
            if not parts.is_store(store.root):
                raise _no_store(root)
            format.check(store.root)
            if missing := parts.check(store.root):
                hint = "`obuild fsck --repair` makes it again"
                raise UsageError(f"the store {root} lacks its folder {missing[0]}", hint=hint)
            store.writable = os.access(store.result_tmp, os.W_OK | os.X_OK)
        except OSError as error:
            raise UsageError(f"cannot read the store {root}: {error.strerror}") from error
        return store

    def _see_writable(self) -> None:
        if not os.access(self.result_tmp, os.W_OK | os.X_OK):
            read_only = os.statvfs(self.result_tmp).f_flag & os.ST_RDONLY
            code = errno.EROFS if read_only else errno.EACCES
            raise OSError(code, os.strerror(code))

    def sweep(self) -> None:
        """Remove what no living process owns: drafts, copies of caches, machines, unfinished base images.

        Errors are ignored: rubbish only matters when its path is needed, and `prune` and `fsck` report it.
        """
        for path in self.unfinished():
            with suppress(ObuildError):
                self.drop(path)
        self.places.sweep()
        self.tags.sweep()
        if is_folder(self.root / "outbox"):
            self.outbox.sweep()

    def unfinished(self) -> list[Path]:
        """Drafts, copies of caches, machines, and what is being removed: all must be owned by a living process."""
        return [
            *parts.entries(self.result_tmp, parts.DRAFT),
            *self._leaving(),
            *parts.entries(self.cache_tmp, parts.COPY),
            *self.states.unfinished(),
        ]

    def _leaving(self) -> list[Path]:
        names = filter(parts.DRAFT.fullmatch, os.listdir(self.result_tmp))
        return [path for name in names if is_file(path := self.result_tmp / name) and leaving(path)]

    def unowned(self, path: Path) -> AbstractContextManager[bool]:
        """Yield whether something unfinished is rubbish; if so, nobody can own it until the block ends."""
        if path.parent == self.result_tmp:
            return locks.file_lock(self._lock_file(path.name), wait=False)
        return locks.folder_lock(path, wait=False)

    def is_rubbish(self, path: Path) -> bool:
        """Whether something unfinished has no owner. Writes nothing."""
        if path.parent == self.result_tmp:
            return not locks.is_held(self._lock_file(path.name))
        with locks.folder_lock(path, wait=False) as free:
            return free

    def drop(self, path: Path) -> bool:
        """Remove something unfinished; keep it and return False if a living process owns it."""
        with self.unowned(path) as rubbish:
            if rubbish:
                if leaving(path):
                    self._finish(path.name)
                discard(path)
            return rubbish

    def _finish(self, name: str) -> None:
        """Finish an in-place removal (see `move_out`) whose process has died; the caller has the lock.

        A complete layer stays: it may be in use by now. An incomplete one cannot be in use.
        """
        flat = name.removeprefix("flat-")
        folder, first = (self.result / name, _FIRST) if flat == name else (self.flats.folder / flat, mtree.NAME)
        if folder.is_dir() and not (folder / first).exists():
            discard(folder)
            fsync(folder.parent)

    # -- looking

    def layer(self, id: LayerId) -> Layer:
        """The layer `id`, which may not exist."""
        return Layer(id, self.result / id)

    def find(self, id: LayerId) -> Layer | None:
        """The layer `id`, if the store has it."""
        layer = self.layer(id)
        return layer if is_folder(layer.path) else None

    def ids(self) -> list[LayerId]:
        """The ids of all layers, in no particular order."""
        return [LayerId(name) for name in os.listdir(self.result) if parts.ID.fullmatch(name)]

    def layers(self) -> list[Layer]:
        """All layers, in no particular order."""
        return [self.layer(id) for id in self.ids()]

    def resolve(
        self, prefix: str, *, drafts: bool = False, starting: Callable[[str], Iterable[LayerId]] | None = None
    ) -> LayerId:
        """The id of the layer (or draft, or failed step) for `prefix`: a tag, an id, or the first digits of an id.

        UsageError if there is none, or several. `starting` returns at least all layers whose ids begin with a
        prefix; without it, result/ is listed.
        """
        folders = (self.result, self.result_tmp) if drafts else (self.result,)
        if not could_be_id(prefix):
            return self._tagged(prefix)
        found: list[str] = []
        if parts.ID.fullmatch(prefix):
            found = [prefix] if any(is_folder(folder / prefix) for folder in folders) else []
            if drafts and not found and is_file(self.failed / prefix):
                found = [prefix]
        elif _ID_START.fullmatch(prefix):
            names = {
                *(starting(prefix) if starting else self.ids()),
                *(filter(parts.ID.fullmatch, self._unfinished_names()) if drafts else ()),
            }
            found = sorted(name for name in names if name.startswith(prefix))
        if not found:
            raise UsageError(f"no layer has the id {prefix!r}", hint="`obuild ls` lists the layers")
        if len(found) > 1:
            some = ", ".join(name[: len(prefix) + 6] for name in found[:4])
            raise UsageError(f"{prefix!r} could be {len(found)} layers: {some}", hint="give more digits")
        return LayerId(found[0])

    def _tagged(self, tag: str) -> LayerId:
        """The layer of a tag. UsageError if there is no such tag, or its layer is gone."""
        id = self.tags.get(tag)
        if id is None:
            hint = "`obuild ls` lists the layers"
            if self.tags.is_there(tag):
                hint = "its file is damaged: `obuild fsck --repair` removes it"
            raise UsageError(f"no layer has the id or the tag {tag!r}", hint=hint)
        if self.find(id) is None:
            hint = f"build it again, or remove the tag: obuild tag rm {tag}"
            raise UsageError(f"the layer of the tag {tag!r}, {id[:12]}, is gone", hint=hint)
        return id

    def _unfinished_names(self) -> list[str]:
        return [*os.listdir(self.result_tmp), *(os.listdir(self.failed) if is_folder(self.failed) else ())]

    def log_path(self, id: LayerId) -> Path:
        """The path of the log of a layer or draft, or of a step that has failed."""
        for folder in (self.result, self.result_tmp):
            if is_folder(folder / id):
                return folder / id / "log"
        return self.failed / id

    # -- making

    def tag(self, id: LayerId, name: str) -> None:
        """Set or move a tag to a layer. UsageError for an invalid name, StoreError if the layer is gone."""
        with storage_errors(self.root), self.use(id) as layer:
            if layer is None:
                raise StoreError(f"layer {id} was removed from the store", hint="build again")
            self.tags.put(checked(name), id)

    def claim(
        self, id: LayerId, *, meanwhile: Callable[[], object] = lambda: None
    ) -> AbstractContextManager[locks.Claim]:
        """Take the lock to make `id`; `meanwhile` is called repeatedly while another process holds it."""
        return locks.claim(self._lock_file(id), meanwhile=meanwhile)

    @contextmanager
    def use(self, id: LayerId) -> Iterator[Layer | None]:
        """The layer `id`, protected from removal until the block ends; None if it is gone."""
        with locks.folder_lock(self.result / id, shared=True) as held:
            layer = self.find(id) if held else None
            if layer is not None and self.writable:
                touch(layer.path)
            yield layer

    @contextmanager
    def draft(
        self, step: Keyed, heard: Callable[[int, int], object] = lambda done, total: None
    ) -> Iterator[Draft]:
        """A folder to make the step's layer in; committed when the block ends, removed if it raises.

        The caller has the claim on the step's id, and the parent in use. The block must leave a complete
        rootfs/image.qcow2 that no process writes to any more. `heard` is called while layers below are flattened,
        with the bytes read and their total. StoreError if a layer below is damaged.
        """
        path = self.result_tmp / step.id
        _see_free(self.result / step.id)
        discard(path)  # left by a process that died after we opened the store
        try:
            with storage_errors(self.root):
                (path / parts.IMAGE).parent.mkdir(parents=True)
                failpoints.reach("draft.made")
                (path / "key").write_bytes(step.key.encode("utf-8", "surrogateescape"))
                parent = step.parent
                below = parts.seen_from_image(self.flats.below(parent, heard)) if parent is not None else ""
                failpoints.reach("draft.ready")
                with (path / "log").open("wb") as log:
                    yield Draft(step.id, path, log, step.parent, below)
                self._commit(step.id)
        finally:
            discard(path)

    def keep_log(self, draft: Draft) -> None:
        """Keep the log of a step that has failed, in place of the oldest of FAILED. That it cannot is no error."""
        with suppress(OSError):
            self.failed.mkdir(exist_ok=True)
            place = self.failed / draft.id
            place.unlink(missing_ok=True)
            os.link(draft.path / "log", place)
            kept = sorted(filter(is_file, self.failed.iterdir()), key=lambda path: path.stat().st_mtime)
            for old in kept[:-FAILED]:
                old.unlink(missing_ok=True)

    @contextmanager
    def scratch(self, id: LayerId) -> Iterator[Draft]:
        """A draft on a layer that is thrown away, to read the layer with a machine. StoreError as for `draft`."""
        with (
            storage_errors(self.root),
            self.use(id) as layer,
            owned_folder(self.cache_tmp, f"scratch-{id[:12]}") as folder,
            (folder / "log").open("wb") as log,
        ):
            if layer is None:
                raise StoreError(f"layer {id} was removed from the store", hint="build again")
            (folder / parts.IMAGE).parent.mkdir()
            yield Draft(id, folder, log, id, parts.seen_from_image(self.flats.below(id)), scratch=True)

    def chain_folder(self) -> AbstractContextManager[Path]:
        """A folder for a chain of native steps, as deep in the store as a draft; removed when the block ends."""
        return owned_folder(self.cache_tmp, "native", mode=0o700)

    def sources_folder(self) -> AbstractContextManager[Path]:
        """A folder that only its owner can enter, for files to copy; removed when the block ends."""
        return owned_folder(self.cache_tmp, "sources", mode=0o700)

    def spool(self) -> BinaryIO:
        """An unlinked temporary file, for data too large for memory."""
        with storage_errors(self.root), owned_folder(self.cache_tmp, "spool") as folder:
            return (folder / "spool").open("w+b")

    def _commit(self, id: LayerId) -> None:
        """fsync the draft, rename it, fsync both folders: the rename is the commit."""
        draft, layer = self.result_tmp / id, self.result / id
        failpoints.reach("commit.sealing")
        (draft / parts.IMAGE).stat()  # FileNotFoundError: a layer must have an image
        mtree.seal(draft)
        failpoints.reach("commit.sealed")
        draft.rename(layer)
        failpoints.reach("commit.renamed")
        fsync(self.result)
        fsync(self.result_tmp)
        failpoints.reach("commit.done")

    # -- removing

    def parents(self) -> dict[LayerId, LayerId | None]:
        """The parent of each layer."""
        found: dict[LayerId, LayerId | None] = {}
        self.add_parents(found)
        return found

    def add_parents(self, known: dict[LayerId, LayerId | None]) -> None:
        """Add the parents of layers that are not known yet."""
        for name in os.listdir(self.result):
            if name not in known and parts.ID.fullmatch(name):
                with suppress(FileNotFoundError, NotADirectoryError):  # it was just removed, or is not a layer
                    known[LayerId(name)] = self.layer(LayerId(name)).parent

    def remove(self, id: LayerId, parents: dict[LayerId, LayerId | None], *, untag: bool = False) -> bool:
        """Remove a layer; False if it has children, is in use, or is already gone.

        A layer with tags also stays, unless `untag` removes them with it.

        `parents` has the layers that the caller knows; newer ones are added to it. A process that builds on `id`
        holds a shared lock until the child is in result/, so under our exclusive lock one more look sees every
        child. The layer leaves result/ by a rename, so nobody ever sees half of it. Its flattened copy and its
        saved machine are removed before, since they must not outlive it.
        """
        with (
            locks.file_lock(self._lock_file(id), wait=False) as claimed,
            locks.folder_lock(self.result / id, wait=False) as free,
        ):
            if not (claimed and free):
                return False
            self.add_parents(parents)
            if any(parent == id and self.find(child) for child, parent in parents.items()):
                return False
            if not untag and id in self.tags.by_layer():
                return False
            failpoints.reach("remove.locked")
            if not self.states.remove(
                id
            ):  # a process that resumes it has the layer in use, so it is being removed
                return False
            if untag:
                self.tags.untag(id)
            self.flats.remove(id)
            move_out(self.result / id, self.result_tmp / id, first=_FIRST)
            failpoints.reach("remove.renamed")
            fsync(self.result)
            discard(self.result_tmp / id)
            failpoints.reach("remove.done")
            for memo in filter(is_file, self.manifests.glob(f"{id}-*")):
                memo.unlink(missing_ok=True)
            parents.pop(id, None)
            return True

    def _lock_file(self, name: str) -> Path:
        return self.locks / f"{name}.lock"


def _no_store(root: Path) -> UsageError:
    return UsageError(f"{root} is not a store", hint="a first `obuild build` makes it")


def _resolved(root: Path) -> Path:
    """Resolve symlinks. UsageError if they form a loop."""
    try:
        return root.resolve()
    except RuntimeError as error:  # an OSError from Python 3.13 on
        raise UsageError(f"cannot find the store {root}: {error}") from error


def _see_free(place: Path) -> None:
    """StoreError if something is in the place of a layer to be made: a damaged layer, or something else.

    The caller has the claim on the layer, so nobody else is making or removing it.
    """
    if is_folder(place):
        problems = "; ".join(mtree.damage(place)) or "it cannot be used"
        hint = "`obuild fsck --repair` removes it and all layers built on it; then build again"
        raise StoreError(f"layer {place.name} is damaged: {problems}", hint=hint)
    if os.path.lexists(place):
        hint = "`obuild fsck --repair` moves it out of the way"
        raise StoreError(f"{place} is {kind(place)}, where a layer should be", hint=hint)
