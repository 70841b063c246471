"""Export a layer: unpack its disk once, write each format from it, and place the files when they are whole."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

from obuild.bases import work_folder
from obuild.bases.table import nearest
from obuild.errors import ObuildError, ProcessError, StoreError, UsageError, words
from obuild.exports import checksums, documents, free_space, provenance
from obuild.exports.all import FORMATS
from obuild.exports.disk import Disk, Options
from obuild.exports.signing import Signer
from obuild.guests.profile import Card
from obuild.host import failpoints, parallel, process, qemu_img, resize, sparse, units
from obuild.host.fs import discard, fsync, writing_out
from obuild.plan.keys import LayerId
from obuild.store.layers import Layer, Store

#: What an image may be called.
STEM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


class Wanted(NamedTuple):
    """What to export: the types, where to, what the files are called before their suffix, and for whom.

    `card` is that of the layer's base. With `force`, files that are there are replaced. The disk grows to `size`
    bytes if that is not 0, or is made as small as it can be with `shrink`. With `documented`, lists of packages
    and the provenance are written, too, and with `signer`, a signature of every file; both need `summed`, which
    writes checksums.
    """

    types: Sequence[str]
    out: Path
    stem: str
    card: Card
    options: Options = Options()
    force: bool = False
    size: int = 0
    shrink: bool = False
    documented: bool = False
    signer: Signer | None = None
    summed: bool = True


#: Hears how many bytes have been read for what is said last, and how many there are.
Progress = Callable[[int, int], object]


def _unheard(done: int, total: int) -> None:
    pass


#: Gives the image to export: that of a layer, or one on a copy of it, for as long as the block lasts.
Prepare = Callable[[Layer], AbstractContextManager[Path]]


def _as_it_is(layer: Layer) -> AbstractContextManager[Path]:
    return nullcontext(layer.image)


def export(
    store: Store,
    id: LayerId,
    wanted: Wanted,
    *,
    say: Callable[[str], object],
    progress: Progress = _unheard,
    prepare: Prepare = _as_it_is,
) -> list[Path]:
    """Write the images; returns their paths in the order of the types. Each appears whole or not at all.

    UsageError, before anything is written, for an unknown type, a file that is there already, a disk that is too
    large for a format, or a missing program. The layer does not change, and cannot be removed meanwhile.
    """
    places = _checked(wanted)
    with store.use(id) as layer:
        if layer is None:
            raise StoreError(f"layer {id} was removed from the store", hint="build again")
        _see_size(layer, wanted)
        papers = _documents(store, id, wanted, cleaned=prepare is not _as_it_is) if wanted.documented else None
        with prepare(layer) as image, _no_room(wanted.out):
            disk = Disk(Path(), 0, layer.id, wanted.card, wanted.options, say, progress)
            return _export(disk, image, wanted, places, papers)


@contextmanager
def _no_room(out: Path) -> Iterator[None]:
    """Turn the errors of a folder that cannot be written to into an ObuildError that names it."""
    try:
        yield
    except OSError as error:
        raise ObuildError(f"cannot write to {out}: {words(error)}") from error
    except ProcessError as error:
        full = os.strerror(errno.ENOSPC)
        if full not in error.message:
            raise
        free = units.size(shutil.disk_usage(out).free)
        hint = f"{free} are free; the disk is unpacked there before it is converted"
        raise ObuildError(f"cannot write to {out}: {full}", hint=hint) from error


def _export(
    disk: Disk, image: Path, wanted: Wanted, places: Sequence[Path], papers: documents.Documents | None
) -> list[Path]:
    """`disk` has no path and no size yet."""
    say = disk.say
    wanted.out.mkdir(parents=True, exist_ok=True)
    with work_folder.folder_in(wanted.out) as work:
        # Its name may be that of the disk, or of what else the formats put beside it.
        (images := work / "images").mkdir()
        disk = disk._replace(path=work / "disk.raw")
        say(f"unpacking the disk of {disk.layer[:12]}")
        packed = sum(each.stat().st_size for each in qemu_img.chain(image))
        # A raw image is the disk itself, which has to be flushed.
        with writing_out(disk.path) if "raw" in wanted.types else nullcontext():
            qemu_img.unpack(image, disk.path, progress=disk.reading(packed))
        if wanted.size:
            say(f"growing it to {units.size(wanted.size)}")
            resize.grow(disk.path, wanted.size)
        if wanted.shrink:
            say("shrinking it")
            resize.shrink(disk.path)
        disk = disk._replace(size=disk.path.stat().st_size)
        failpoints.reach("export.unpacked")
        if not all(FORMATS[type].files_only for type in wanted.types):
            _clear(disk)
        for type, place in zip(wanted.types, places, strict=True):
            say(f"writing {place}")
            made = images / place.name
            FORMATS[type].write(disk, made)
            put_in_place(made, place, disk.progress, summed=wanted.summed)
        beside = papers.write(disk, places) if papers else []
        documents.sign([*places, *beside], wanted.signer, work)
    return list(places)


def _clear(disk: Disk) -> None:
    cleared = free_space.clear(disk.path)
    for number, why in cleared.skipped.items():
        disk.say(
            f"the free space of partition {number} is not cleared: {why}" if number else f"not cleared: {why}"
        )
    if cleared.size:
        disk.say(f"cleared {units.size(cleared.size)} of free space")


def _documents(store: Store, id: LayerId, wanted: Wanted, *, cleaned: bool) -> documents.Documents:
    changes = {"size": wanted.size, "shrink": wanted.shrink, "sysprep": cleaned}
    about = provenance.predicate(store, id, {name: value for name, value in changes.items() if value})
    papers = documents.Documents(wanted.out, wanted.stem, about)
    papers.check(force=wanted.force)
    return papers


def put_in_place(made: Path, place: Path, progress: Progress = _unheard, *, summed: bool = True) -> None:
    """Move a finished image to its place, in the same file system, and note its checksum if `summed`."""
    digest = None
    if made.is_dir():  # it may have links and devices in it, which are not to be opened
        process.run(["sync", "--file-system", made])
    elif summed:
        digest = _flushed(made, progress)
    else:
        fsync(made)
    failpoints.reach("export.made")
    if place.is_dir():  # it cannot be replaced as a whole
        discard(place)
    made.replace(place)
    fsync(place.parent)
    failpoints.reach("export.placed")
    checksums.note(place, digest)


def _flushed(made: Path, progress: Progress) -> str:
    """Flush a file to the disk; returns its sha256, in hex, which is computed at the same time."""
    size = made.stat().st_size
    with parallel.meanwhile(fsync, made) as flushed:
        digest = sparse.sha256(made, lambda done: progress(done, size))
        flushed.result()
    return digest


def _checked(wanted: Wanted) -> list[Path]:
    """The paths of the images. UsageError if one cannot be made, or is there already."""
    if not wanted.types:
        raise UsageError("export needs a --type", hint=f"one or more of {', '.join(FORMATS)}")
    for type in wanted.types:
        if type not in FORMATS:
            raise UsageError(f"unknown type {type!r}", hint=nearest(type, FORMATS))
    wanted.options.check(wanted.types)
    if not wanted.summed and (wanted.documented or wanted.signer):
        needs = "a signature" if wanted.signer else "the provenance"
        hint = "--no-sbom writes none" if not wanted.signer else ""
        raise UsageError(f"--no-checksums: {needs} is about checksums", hint=hint)
    if not STEM.fullmatch(wanted.stem):
        hint = "letters, digits and . _ + - only: --name and --version choose it"
        raise UsageError(f"{wanted.stem!r} cannot be the name of an image", hint=hint)
    if wanted.out.exists() and not wanted.out.is_dir():
        raise UsageError(f"{wanted.out} is not a folder")
    if wanted.size and wanted.shrink:
        raise UsageError("--size and --shrink exclude each other")
    resizing = resize.PROGRAMS if wanted.size or wanted.shrink else ()
    for program in (
        *resizing,
        *(each for type in wanted.types for each in FORMATS[type].programs),
    ):
        process.require(program)
    places = [wanted.out / f"{wanted.stem}.{FORMATS[type].suffix}" for type in wanted.types]
    if len(set(places)) < len(places):
        raise UsageError("each --type can be given once")
    there = [str(place) for place in places if place.exists() or place.is_symlink()]
    if there and not wanted.force:
        raise UsageError(f"{', '.join(there)} exists already", hint="--force replaces it")
    return places


def _see_size(layer: Layer, wanted: Wanted) -> None:
    size = max(wanted.size, qemu_img.virtual_size(layer.image))
    for type in wanted.types:
        FORMATS[type].check(size, wanted.card)
