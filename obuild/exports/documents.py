"""What lies beside exported images: lists of packages, where the images come from, and signatures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from obuild.errors import ObuildError, UsageError
from obuild.exports import checksums, provenance, sbom, signing
from obuild.exports.disk import Disk
from obuild.exports.packages.all import inventory
from obuild.exports.signing import Signer
from obuild.host import failpoints, locks
from obuild.host.fs import fsync
from obuild.host.trees import root

_PROVENANCE = "provenance.json"


class Documents:
    """The documents of one export, called `stem` and a suffix. `about` is the predicate of the provenance."""

    def __init__(self, out: Path, stem: str, about: dict[str, Any]) -> None:
        self._out, self._stem, self._about = out, stem, about

    def check(self, *, force: bool) -> None:
        """UsageError if there are documents of another layer that nothing allows to replace."""
        place = self._place(_PROVENANCE)
        if place.is_file() and not force and provenance.subjects(place.read_bytes(), self._about) is None:
            said = f"{place} is about another layer, or was written by another version of obuild"
            raise UsageError(said, hint="--force replaces it; --name or --version choose another name")

    def write(self, disk: Disk, images: Sequence[Path]) -> list[Path]:
        """Write all documents; returns their paths. Without a list of packages, a note says why there is none."""
        written, work = [], disk.path.parent
        try:
            if disk.card.os != "linux":
                raise UsageError(f"{disk.card.os} has no database of packages that obuild can read")
            with root.of_raw(disk.path) as tree:
                found = inventory(tree)
        except ObuildError as error:
            disk.say(f"there is no list of packages: {error.message}")
        else:
            for format in sbom.FORMATS.values():
                written.append(self._put(format.suffix, format.write(found, disk.layer), work))
        return [*written, self._put(_PROVENANCE, partial(self._statement, images), work)]

    def _statement(self, images: Sequence[Path]) -> bytes:
        """The provenance of these images, and of others of the same layer that it was about before."""
        place = self._place(_PROVENANCE)
        known = provenance.subjects(place.read_bytes(), self._about) if place.is_file() else None
        there = {name: digest for name, digest in (known or {}).items() if (self._out / name).exists()}
        now = {image.name: digest for image in images if (digest := _digest(image))}
        return provenance.statement(there | now, self._about)

    def _put(self, suffix: str, content: bytes | Callable[[], bytes], work: Path) -> Path:
        place = self._place(suffix)
        put(place, content, work)
        return place

    def _place(self, suffix: str) -> Path:
        return self._out / f"{self._stem}.{suffix}"


def sign(paths: Sequence[Path], signer: Signer | None, work: Path) -> None:
    """Write the signature of each file, whose checksum is noted, beside it. Folders get none.

    `work` is as for `put`. Without a signer, signatures that files had before they changed are removed.
    """
    for path in paths:
        place = path.with_name(path.name + signing.SUFFIX)
        if signer is None or path.is_dir():
            if place.exists():
                place.unlink()
                checksums.note(place, None)
            continue
        put(place, signer.sign(bytes.fromhex(checksums.noted(path))), work)


def put(place: Path, content: bytes | Callable[[], bytes], work: Path) -> None:
    """Write a small file that appears as a whole, and note its checksum. A function is called under a lock.

    It is made in the folder `work`, which is removed after a crash.
    """
    with locks.folder_lock(place.parent):
        data = content if isinstance(content, bytes) else content()
        made = work / place.name
        made.write_bytes(data)
        fsync(made)
        failpoints.reach("export.documented")
        made.replace(place)
        fsync(place.parent)
        checksums.replace(place, hashlib.sha256(data).hexdigest())


def _digest(image: Path) -> str:
    """The sha256 of an image; of an image layout, that of its manifest; "" for another folder."""
    if not image.is_dir():
        return checksums.noted(image)
    index = image / "index.json"
    if not index.is_file() or not (image / "oci-layout").is_file():
        return ""
    (entry,) = json.loads(index.read_bytes())["manifests"]
    return str(entry["digest"]).removeprefix("sha256:")
