"""Flatten long chains of backing files, so that they stay short however many steps a spec has.

A layer's image is an overlay on its parent's, and each image that a read passes through costs time. If the chain
below a new draft would be longer than LONGEST, the draft's backing file is STORE/flat/PARENT/image.qcow2 instead:
an overlay on an image further down, with everything that the images in between have written. A guest sees the same
bytes either way. It is made once, and all children of PARENT share it.

No layer changes, and no id depends on it. Images have flat/P as their backing file, and all of them are
descendants of P. So it is removed exactly when P is removed, which then has no children.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from obuild.errors import StoreError
from obuild.host import failpoints, locks, qemu_img
from obuild.host.fs import discard, fsync, move_out
from obuild.host.regular import is_folder, read_bytes
from obuild.plan.keys import LayerId
from obuild.store import mtree, parts

#: How many images may be below a draft. Each costs about 0.7 µs per random read, and 0.7 ms per machine start.
LONGEST = 16


@dataclass(frozen=True, slots=True)
class Link:
    """One image of a chain: its path relative to the store's root, and its size on disk in bytes."""

    name: str
    size: int


#: Hears how many bytes have been read, and how many there are.
Heard = Callable[[int, int], object]


def _nobody(done: int, total: int) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Flats:
    """The flattened layers of a store: `folder` has them by id, `drafts` those being made."""

    root: Path
    folder: Path
    drafts: Path
    locks: Path

    def below(self, id: LayerId, heard: Heard = _nobody) -> str:
        """The backing file for a draft on layer `id`, as a path relative to the store's root.

        The caller has the layer in use. `heard` is called while images are flattened. StoreError if any image that
        the draft would read from is damaged.
        """
        name = parts.flat_image(id)
        if is_folder(self.folder / id):
            self._walk(name)
            return name
        links = self.chain(id)
        if len(links) <= LONGEST:
            return links[0].name
        taken = links[: _taken(links)]
        total = sum(link.size for link in taken)
        self._make(id, links[0], links[len(taken)], lambda done: heard(min(done, total), total))
        return name

    def chain(self, id: LayerId) -> list[Link]:
        """The images that a guest on layer `id` reads from: the layer's own first, its base's last.

        StoreError if one is missing, or its size has changed.
        """
        return self._walk(parts.layer_image(id))

    def check(self, id: LayerId) -> None:
        """StoreError if the flattened layer `id`, or one below it, is missing, damaged, or of another layer."""
        self._walk(parts.flat_image(id))

    def remove(self, id: LayerId) -> None:
        """Remove the flattened layer `id`, if there is one.

        The caller has exclusive use of the layer, which has no children. It leaves flat/ by a rename that is on
        the disk when this returns: a flat must not outlive its layer, which may be made again with other content.
        """
        if not is_folder(self.folder / id):
            return
        rubbish = self.drafts / f"flat-{id}"
        with locks.file_lock(self._lock_file(id)):  # nobody is making it: at most this waits for a sweep
            discard(rubbish)
            move_out(self.folder / id, rubbish, first=mtree.NAME)
            fsync(self.folder)
            failpoints.reach("flat.removed")
            discard(rubbish)

    def _make(self, id: LayerId, top: Link, bottom: Link, heard: Callable[[int], object]) -> None:
        """Make flat/ID from `top` and all images above `bottom`, unless another process has made it."""
        with locks.file_lock(self._lock_file(id)):
            if is_folder(self.folder / id):
                return
            draft = self.drafts / f"flat-{id}"  # like any draft: rubbish once its lock can be taken
            discard(draft)
            try:
                draft.mkdir()
                failpoints.reach("flat.making")
                image = draft / parts.FLAT_IMAGE
                qemu_img.flatten(image, f"../../{top.name}", f"../../{bottom.name}", progress=heard)
                shutil.copyfile(self.root / "result" / id / mtree.NAME, draft / "layer")
                mtree.seal(draft)
                failpoints.reach("flat.sealed")
                if not self.folder.is_dir():  # most stores do not need it
                    self.folder.mkdir(exist_ok=True)
                    fsync(self.root)
                draft.rename(self.folder / id)
                failpoints.reach("flat.renamed")
                fsync(self.folder)
                fsync(self.drafts)
            finally:
                discard(draft)

    def _walk(self, name: str) -> list[Link]:
        """The images of a chain, from `name` downwards; StoreError as for `chain`."""
        links: list[Link] = []
        while True:
            self._check(name, above=links[-1].name if links else "")
            image = self.root / name
            links.append(Link(name, image.stat().st_blocks * 512))
            try:
                backing = qemu_img.backing_file(image)
            except ValueError as error:
                raise _damaged(name, [str(error)]) from error
            if not backing:
                return links
            name = os.path.normpath(Path(name).parent / backing)
            if not parts.whose_image(name):
                raise _damaged(
                    links[-1].name, [f"its backing file is {backing}, which is not a layer of the store"]
                )

    def _check(self, name: str, *, above: str = "") -> None:
        """StoreError if an image's folder has changed since it was made; `above` is the image based on it."""
        if (found := parts.whose_image(name)) is None:
            raise ValueError(name)
        id, flat = found
        folder = self.folder / id if flat else self.root / "result" / id
        if not is_folder(folder):
            raise _damaged(name, ["it is missing" + (f", and {_what(above)} is based on it" if above else "")])
        if problems := mtree.damage(folder):
            raise _damaged(name, problems)
        if flat and not _same(folder / "layer", self.root / "result" / id / mtree.NAME):
            raise _damaged(name, ["that layer was removed by hand, or made again since"])

    def _lock_file(self, id: LayerId) -> Path:
        return self.locks / f"flat-{id}.lock"


def _taken(links: list[Link]) -> int:
    """How many images, from the top of a chain, to merge into the flat; at least the base's remains below it.

    It stops at an image that is more than twice as large as all above it together. So a large image is not
    copied for the sake of a few small ones, and a flat is only copied into one that is half as large again. But
    whatever the sizes are, there is room for a few more layers afterwards, so that not every step makes a flat.
    """
    taken = len(links) - LONGEST * 3 // 4
    size = sum(link.size for link in links[:taken])
    while taken < len(links) - 1 and links[taken].size <= 2 * size:
        size += links[taken].size
        taken += 1
    return taken


def _same(one: Path, other: Path) -> bool:
    try:
        return read_bytes(one) == read_bytes(other)
    except OSError:
        return False


def _what(name: str) -> str:
    kind, id, *_ = name.split("/")
    return f"layer {id}" if kind == "result" else f"the flattened copy of layer {id} in flat/"


def _damaged(name: str, problems: list[str]) -> StoreError:
    if name.startswith("flat/"):
        hint = f"`obuild rm {name.split('/')[1]}` removes both and all layers built on them; then build again"
    else:
        hint = "`obuild fsck --repair` removes it and all layers built on it; then build again"
    return StoreError(f"{_what(name)} is damaged: {'; '.join(problems)}", hint=hint)
