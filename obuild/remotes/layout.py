"""A remote that is an OCI image layout, in a folder or a bucket.

The format is https://github.com/opencontainers/image-spec/blob/main/image-layout.md: `index.json` names the
manifests by tag, and each manifest and blob is a file in blobs/sha256/ named by its digest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from typing import Any, Protocol

from obuild.errors import ObuildError
from obuild.host import failpoints, parallel
from obuild.remotes.layer import LARGEST_MANIFEST, Blob
from obuild.remotes.oci import descriptor, digest_of, index, packed
from obuild.remotes.protocol import WORKERS, Tagged, Unusable

#: The annotation of an entry of index.json that has its tag.
_TAG = "org.opencontainers.image.ref.name"

_INDEX, _MARK = "index.json", "oci-layout"
_VERSION = {"imageLayoutVersion": "1.0.0"}

#: The most that index.json may take, in bytes: that of 300,000 layers.
_LARGEST_INDEX = 128 << 20

#: How long an unused blob stays, in seconds: somebody may be sending the layer that it belongs to.
GRACE = 86400.0

_BLOBS = "blobs/sha256/"


class Objects(Protocol):
    """The files of a layout, by name. They appear as a whole. ObuildError if that fails."""

    name: str

    def read(self, name: str, most: int) -> bytes | None:
        """A file, None if there is none. ObuildError if it is larger than `most` bytes."""
        ...

    def exists(self, name: str) -> bool: ...

    def write(self, name: str, data: bytes) -> None: ...

    def update(self, name: str, most: int, change: Callable[[bytes | None], bytes | None]) -> None:
        """Replace a file by what `change` makes of it, until that is None because there is nothing to change.

        Others may change it at the same time, and nothing of theirs is lost.
        """
        ...

    def older(self, prefix: str, seconds: float) -> Iterator[tuple[str, int]]:
        """The names and sizes of files that have been there for so long."""
        ...

    def delete(self, name: str) -> None: ...


class Layout:
    """See `Remote`."""

    def __init__(self, objects: Objects) -> None:
        self.name, self._objects = objects.name, objects

    def manifests(self, references: Sequence[str]) -> dict[str, bytes]:
        digests = {each: each for each in references if ":" in each}
        if len(digests) < len(references):
            tagged = {tag: entry["digest"] for entry in self._entries() if (tag := _tag(entry))}
            digests |= {each: tagged[each] for each in references if each in tagged}

        def read(reference: str) -> tuple[str, bytes | None]:
            return reference, self._blob(digests[reference], LARGEST_MANIFEST)

        found = dict(parallel.each(read, digests, WORKERS))
        return {reference: data for reference, data in found.items() if data is not None}

    def tags(self) -> list[str]:
        return sorted(filter(None, map(_tag, self._entries())))

    def has(self, digest: str) -> bool:
        return self._objects.exists(_path(digest))

    def get(self, blob: Blob) -> bytes:
        data = self._blob(blob.digest, blob.size)
        if data is None:
            raise Unusable(f"{self.name} has lost the blob {blob.digest}")
        return data

    def put(self, blob: Blob, data: bytes) -> None:
        self._objects.write(_path(blob.digest), data)

    def tag(self, tag: str, manifest: Tagged, *, replace: bool = False) -> bool:
        entry = self._stored(manifest)
        entry["annotations"] = {_TAG: tag}
        done = False

        def change(entries: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
            nonlocal done
            there = [each for each in entries if _tag(each) == tag]
            done = replace or not there or there[0]["digest"] == entry["digest"]
            if there and (not done or there == [entry]):
                return None
            return [*(each for each in entries if _tag(each) != tag), entry]

        if not self._objects.exists(_MARK):
            self._objects.write(_MARK, packed(_VERSION))
        failpoints.reach("push.tagging")
        self._change(change)
        return done

    def attach(self, manifest: Tagged, subject: str, kind: str) -> None:
        entry = self._stored(manifest)
        entry["artifactType"] = kind
        entry["annotations"] = {_SUBJECT: subject}
        self._change(lambda entries: None if entry in entries else [*entries, entry])

    def attached(self, digest: str, kind: str) -> list[bytes]:
        found = [
            str(each["digest"])
            for each in self._entries()
            if _notes(each).get(_SUBJECT) == digest and each.get("artifactType") == kind
        ]
        return list(self.manifests(found).values())

    def remove(self, tags: Collection[str]) -> None:
        def change(entries: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
            kept = [each for each in entries if _tag(each) not in tags]
            named = {each["digest"] for each in kept}
            kept = [each for each in kept if _notes(each).get(_SUBJECT, each["digest"]) in named]
            return kept if len(kept) < len(entries) else None

        self._change(change)

    def sweep(self) -> int:
        freed = 0
        old = dict(self._objects.older(_BLOBS, GRACE))  # before we look what is used: then nothing new is in it
        used = self._used()
        for name, size in old.items():
            if name not in used:
                self._objects.delete(name)
                freed += size
        return freed

    def _used(self) -> set[str]:
        """The names of all blobs that manifests name."""
        used, left = set(), [str(each["digest"]) for each in self._entries()]
        while left:
            used |= set(map(_path, left))
            found = [_named(data) for data in self.manifests(left).values()]
            used |= {_path(digest) for _, blobs in found for digest in blobs}
            left = [digest for inner, _ in found for digest in inner if _path(digest) not in used]
        return used

    def _stored(self, manifest: Tagged) -> dict[str, Any]:
        """The descriptor of a manifest, which is stored as a blob."""
        entry = descriptor(manifest.data, manifest.media_type)
        self._objects.write(_path(entry["digest"]), manifest.data)
        return entry

    def _entries(self) -> list[dict[str, Any]]:
        return self._parsed(self._objects.read(_INDEX, _LARGEST_INDEX))

    def _parsed(self, data: bytes | None) -> list[dict[str, Any]]:
        """The entries of index.json. ObuildError if it is damaged."""
        if data is None:
            return []
        with suppress(ValueError, TypeError, AttributeError, KeyError, RecursionError):
            entries = json.loads(data)["manifests"]
            if all(_path(each["digest"]) for each in entries):
                return [dict(each) for each in entries]
        raise ObuildError(f"the index.json of {self.name} is damaged")

    def _change(self, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]] | None]) -> None:
        def changed(data: bytes | None) -> bytes | None:
            entries = change(self._parsed(data))
            if entries is None:
                return None
            return index(entries)

        self._objects.update(_INDEX, _LARGEST_INDEX, changed)

    def _blob(self, digest: str, most: int) -> bytes | None:
        data = self._objects.read(_path(digest), most)
        if data is not None and digest_of(data) != digest:
            raise Unusable(f"the blob {digest} of {self.name} is damaged")
        return data


#: The annotation of an entry of index.json for what refers to another manifest: the digest of that.
_SUBJECT = "vnd.obuild.subject"


def _named(data: bytes) -> tuple[list[str], list[str]]:
    """The digests of the manifests and of the blobs that a manifest names; none if it is damaged."""
    with suppress(ValueError, TypeError, AttributeError, KeyError, RecursionError):
        document = json.loads(data)
        inner = [str(each["digest"]) for each in document.get("manifests", ())]
        blobs = [str(each["digest"]) for each in (*document.get("layers", ()), document.get("config")) if each]
        if all(map(_path, (*inner, *blobs))):
            return inner, blobs
    return [], []


def _notes(entry: dict[str, Any]) -> dict[str, Any]:
    notes = entry.get("annotations")
    return notes if isinstance(notes, dict) else {}


def _tag(entry: dict[str, Any]) -> str:
    return str(_notes(entry).get(_TAG, ""))


def _path(digest: str) -> str:
    """The name of a blob. ValueError if it has no digest that we know: it would name another file."""
    algorithm, _, digits = digest.partition(":")
    if algorithm != "sha256" or len(digits) != 64 or set(digits) - set("0123456789abcdef"):
        raise ValueError(f"{digest!r} is not a digest")
    return f"{_BLOBS}{digits}"
