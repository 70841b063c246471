"""`file:PATH`: a file on this computer, as `obuild export` places it, with its checksum in SHA256SUMS."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from obuild.bases import work_folder
from obuild.errors import ObuildError, UsageError, words
from obuild.exports.export import put_in_place
from obuild.exports.targets.target import Image, Published, Settings, stem_of, type_of
from obuild.host import process
from obuild.store import mtree


class File:
    """A file, or the folder of an OCI layout."""

    def __init__(self, place: str, settings: Settings) -> None:
        self._place = Path(place.removeprefix("//"))
        self._replace = settings.replace
        self.type = type_of(self._place.name, settings)
        self.stem = stem_of(self._place.name, self.type)

    def check(self) -> None:
        if (self._place.exists() or self._place.is_symlink()) and not self._replace:
            raise UsageError(f"{self._place} exists already", hint="--replace replaces it")

    def send(self, images: Sequence[Image]) -> list[Published]:
        (image,) = images
        folder = self._place.absolute().parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with work_folder.folder_in(folder) as work:
                made = work / self._place.name
                process.run(["cp", "--recursive", "--reflink=auto", "--sparse=always", "--", image.path, made])
                put_in_place(made, folder / made.name)
        except OSError as error:
            raise ObuildError(f"cannot write to {folder}: {words(error)}") from error
        placed = folder / made.name
        manifest = placed / "index.json"
        digest = mtree.digest(manifest if placed.is_dir() else placed)
        size = sum(each.stat().st_size for each in (placed, *placed.rglob("*")) if each.is_file())
        return [Published(f"file:{self._place}", str(placed), f"sha256:{digest}", size)]
