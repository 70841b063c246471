"""Chains of backing files stay short, however many steps a spec has: long ones are flattened.

A layer's image is an overlay on its parent's, and each image that a read falls through takes its time. Where the
chain below a new draft would be longer than LONGEST, the draft stands on STORE/flat/PARENT/image.qcow2 instead: an
overlay on an image further down, holding what those between have written. A guest sees the same bytes on either.
It is made once, and all children of PARENT share it.

No layer changes, and no id depends on it. flat/P is as lasting as the layer P: images name it as their backing
file, and all of them are P's descendants. So it goes when P goes, which has no children then, and not before.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from obuild.errors import StoreError
from obuild.host import failpoints, locks, qemu_img
from obuild.host.fs import discard, fsync, move_out
from obuild.host.regular import is_folder, read_bytes
from obuild.plan.keys import LayerId
from obuild.store import mtree, parts

#: How many images may lie below a draft. Each costs a random read about 0.7 µs, and a machine's start 0.7 ms.
LONGEST = 16


@dataclass(frozen=True, slots=True)
class Link:
    """One image of a chain: its path below the store's root, and the bytes that it takes on the disk."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Flats:
    """The flattened layers of a store: `folder` holds one of each id, `drafts` those in the making."""

    root: Path
    folder: Path
    drafts: Path
    locks: Path

    def below(self, id: LayerId) -> str:
        """The image that a draft on layer `id` is to be an overlay on, as a path below the store's root.

        The caller has the layer in use. StoreError if anything is damaged that the draft would read from.
        """
        name = parts.flat_image(id)
        if is_folder(self.folder / id):
            self._walk(name)
            return name
        links = self.chain(id)
        if len(links) <= LONGEST:
            return links[0].name
        self._make(id, links[0], links[_taken(links)])
        return name

    def chain(self, id: LayerId) -> list[Link]:
        """The images that a guest on layer `id` reads from: its own first, that of its base last.

        StoreError if one of them is missing, or not as it was made as far as sizes tell.
        """
        return self._walk(parts.layer_image(id))

    def check(self, id: LayerId) -> None:
        """StoreError if the flattened layer `id` is missing, damaged, or of another layer; or one below it."""
        self._walk(parts.flat_image(id))

    def remove(self, id: LayerId) -> None:
        """Remove the flattened layer `id`, if there is one.

        The caller has the layer for itself, and no layer stands on it. It leaves flat/ by a rename that is on the
        disk when this returns: a flat must not outlive its layer, for that may be made again and be different.
        """
        if not is_folder(self.folder / id):
            return
        rubbish = self.drafts / f"flat-{id}"
        with locks.file_lock(self._lock_file(id)):  # nobody makes it now: this waits for a sweep at most
            discard(rubbish)
            move_out(self.folder / id, rubbish, first=mtree.NAME)
            fsync(self.folder)
            failpoints.reach("flat.removed")
            discard(rubbish)

    def _make(self, id: LayerId, top: Link, bottom: Link) -> None:
        """Make flat/ID of what `top` and all above `bottom` have written, unless another process just has."""
        with locks.file_lock(self._lock_file(id)):
            if is_folder(self.folder / id):
                return
            draft = self.drafts / f"flat-{id}"  # as any draft: rubbish once its lock can be taken
            discard(draft)
            try:
                draft.mkdir()
                failpoints.reach("flat.making")
                qemu_img.flatten(draft / parts.FLAT_IMAGE, f"../../{top.name}", f"../../{bottom.name}")
                shutil.copyfile(self.root / "result" / id / mtree.NAME, draft / "layer")
                mtree.seal(draft)
                failpoints.reach("flat.sealed")
                if not self.folder.is_dir():  # most stores have no need of it
                    self.folder.mkdir(exist_ok=True)
                    fsync(self.root)
                draft.rename(self.folder / id)
                failpoints.reach("flat.renamed")
                fsync(self.folder)
                fsync(self.drafts)
            finally:
                discard(draft)

    def _walk(self, name: str) -> list[Link]:
        """The images of a chain, from the one of this name on down; StoreError as for `chain`."""
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
                raise _damaged(links[-1].name, [f"it stands on {backing}, which is no layer of the store"])

    def _check(self, name: str, *, above: str = "") -> None:
        """StoreError if the folder of an image, which the image `above` stands on, is not as it was made."""
        if (found := parts.whose_image(name)) is None:
            raise ValueError(name)
        id, flat = found
        folder = self.folder / id if flat else self.root / "result" / id
        if not is_folder(folder):
            raise _damaged(name, ["it is missing" + (f", and {_what(above)} stands on it" if above else "")])
        if problems := mtree.damage(folder):
            raise _damaged(name, problems)
        if flat and not _same(folder / "layer", self.root / "result" / id / mtree.NAME):
            raise _damaged(name, ["that layer was removed by hand, or made again since"])

    def _lock_file(self, id: LayerId) -> Path:
        return self.locks / f"flat-{id}.lock"


def _taken(links: list[Link]) -> int:
    """How many images of a chain, from its top, its flat takes in: at least one more stays, that of the base.

    It goes down to an image that is more than twice as large as all above it together. So a large one is not
    copied for the sake of a few small ones, and a flat is copied only into one that is half as large again. But
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
        hint = f"`obuild rm {name.split('/')[1]}` removes both with all that stands on them; build again then"
    else:
        hint = "`obuild fsck --repair` removes it with all that stands on it; build again then"
    return StoreError(f"{_what(name)} is damaged: {'; '.join(problems)}", hint=hint)
