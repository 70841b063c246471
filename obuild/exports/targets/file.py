"""`file:PATH`: a file on this computer, as `obuild export` places it, with its checksum in SHA256SUMS."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from obuild.bases import work_folder
from obuild.errors import ObuildError, UsageError, words
from obuild.exports.export import put_in_place
from obuild.exports.targets.target import Image, Published, Settings, stem_of, type_of
from obuild.guests.profile import Card
from obuild.host import process
from obuild.store import mtree


class File:
    """A file, or the folder of an OCI layout."""

    def __init__(self, place: str, settings: Settings) -> None:
        self._place = Path(place.removeprefix("//"))
        self._replace, self._say = settings.replace, settings.say
        self.type = type_of(self._place.name, settings)
        self.stem = stem_of(self._place.name, self.type)

    def check(self, cards: Sequence[Card]) -> None:
        """There is nothing to ask: a file that exists may have the same content."""

    def send(self, images: Sequence[Image]) -> list[Published]:
        (image,) = images
        folder = self._place.absolute().parent
        digest, size = _measured(image.path, image.sha256)
        published = [Published(f"file:{self._place}", str(self._place.absolute()), digest, size)]
        if self._place.exists() or self._place.is_symlink():
            if digest and _measured(self._place) == (digest, size):
                self._say(f"{self._place} is there already")
                return published
            if not self._replace:
                hint = "it has other content: --replace replaces it"
                raise UsageError(f"{self._place} exists already", hint=hint)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with work_folder.folder_in(folder) as work:
                made = work / self._place.name
                process.run(["cp", "--archive", "--reflink=auto", "--sparse=always", "--", image.path, made])
                put_in_place(made, folder / made.name)
        except OSError as error:
            raise ObuildError(f"cannot write to {folder}: {words(error)}") from error
        return published


def _measured(path: Path, known: str = "") -> tuple[str, int]:
    """The digest and the size of a file, whose sha256 may be `known`.

    An OCI layout has the digest of its index, another folder none.
    """
    files = [each for each in (path, *path.rglob("*")) if each.is_file() and not each.is_symlink()]
    stands = path / "index.json" if path.is_dir() else path
    digest = f"sha256:{known or mtree.digest(stands)}" if stands.is_file() else ""
    return digest, sum(each.stat().st_size for each in files)
