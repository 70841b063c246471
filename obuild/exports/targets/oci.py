"""`oci://HOST/REPOSITORY:TAG`: a container image in a registry; of several layers, an index with all of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from obuild.errors import UsageError
from obuild.exports.targets import attached
from obuild.exports.targets.target import Image, Published, Settings
from obuild.guests.profile import Card
from obuild.host import failpoints
from obuild.host.units import size
from obuild.remotes import reference
from obuild.remotes.oci import INDEX, Descriptor, descriptor, index
from obuild.remotes.registry import Repository
from obuild.remotes.uploads import Uploads


class Oci:
    """A tag in a registry. It moves when all that it names is there."""

    type = "containerdisk"
    stem = "image"

    def __init__(self, place: str, settings: Settings) -> None:
        self._settings = settings
        self._reference = reference.parse(place)
        if settings.type not in ("", self.type):
            raise UsageError(f"oci:// takes --type {self.type} only")

    def check(self, cards: Sequence[Card]) -> None:
        with self._repository() as repository:
            repository.check()

    def send(self, images: Sequence[Image]) -> list[Published]:
        with self._repository() as repository:
            entries = [self._push(repository, image.path) for image in images]
            failpoints.reach("publish.sent")
            if len(entries) == 1:
                kind = entries[0]["mediaType"]
                data = _blob(images[0].path, entries[0]).read_bytes()
            else:
                kind, data = INDEX, index(entries)
            for image, entry in zip(images, entries, strict=True):
                attached.attach(repository, entry, image.path, self._settings.progress)
            if self._settings.signer:
                place = f"{self._reference.host}/{self._reference.repository}"
                whole = descriptor(data, kind)
                attached.sign(repository, whole, place, self._settings.signer, self._settings.progress)
            digest = repository.put(data, kind, tag=self._reference.tag)
        total = sum(file.stat().st_size for image in images for file in (image.path / "blobs").rglob("*"))
        return [Published(f"oci://{self._reference}", self._reference.at(digest), digest, total)]

    def _repository(self) -> Repository:
        settings = self._settings
        return Repository(
            self._reference.host,
            self._reference.repository,
            Uploads(settings.uploads),
            environment=settings.environment,
            insecure=settings.insecure,
        )

    def _push(self, repository: Repository, layout: Path) -> Descriptor:
        """Send the blobs of a layout, and its manifest without a tag; returns the manifest's descriptor."""
        (entry,) = json.loads((layout / "index.json").read_bytes())["manifests"]
        data = _blob(layout, entry).read_bytes()
        manifest = json.loads(data)
        for blob in (*manifest["layers"], manifest["config"]):
            if not repository.blobs.push(_blob(layout, blob), blob["digest"], self._settings.progress):
                self._settings.say(f"{blob['digest'][:19]} ({size(blob['size'])}) is there already")
        repository.put(data, entry["mediaType"])
        return dict(entry)


def _blob(layout: Path, descriptor: dict[str, Any]) -> Path:
    algorithm, _, digest = str(descriptor["digest"]).partition(":")
    return layout / "blobs" / algorithm / digest
