"""`oci://HOST/REPOSITORY`: a repository of a container registry."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from obuild.errors import UsageError
from obuild.host import failpoints, parallel
from obuild.remotes import reference
from obuild.remotes.layer import LARGEST_MANIFEST, Blob
from obuild.remotes.oci import digest_of
from obuild.remotes.protocol import WORKERS, Tagged, Unusable
from obuild.remotes.registry import Repository


class Registry:
    """See `Remote`."""

    def __init__(self, name: str, repository: Repository) -> None:
        self.name, self._repository = name, repository

    def manifests(self, references: Sequence[str]) -> dict[str, bytes]:
        def get(reference: str) -> tuple[str, bytes]:
            data = self._repository.get(reference)
            if len(data) > LARGEST_MANIFEST or (data and ":" in reference and digest_of(data) != reference):
                raise Unusable(f"{self.name} has a wrong manifest for {reference}")
            return reference, data

        return {reference: data for reference, data in parallel.each(get, references, WORKERS) if data}

    def tags(self) -> list[str]:
        return sorted(self._repository.tags())

    def has(self, digest: str) -> bool:
        return self._repository.blobs.has(digest)

    def get(self, blob: Blob) -> bytes:
        data = self._repository.blobs.get(blob.digest, blob.size)
        if not data:
            raise Unusable(f"{self.name} has lost the blob {blob.digest}")
        if digest_of(data) != blob.digest:
            raise Unusable(f"the blob {blob.digest} of {self.name} is damaged")
        return data

    def put(self, blob: Blob, data: bytes) -> None:
        self._repository.blobs.put(data, blob.digest)

    def tag(self, tag: str, manifest: Tagged, *, replace: bool = False) -> bool:
        there = "" if replace else self._repository.digest_of(tag)
        if there:
            return there == digest_of(manifest.data)
        failpoints.reach("push.tagging")
        self._repository.put(manifest.data, manifest.media_type, tag=tag)
        return True

    def attach(self, manifest: Tagged, subject: str, kind: str) -> None:
        self._repository.attach(manifest.data, manifest.media_type, subject=subject, artifact_type=kind)

    def attached(self, digest: str, kind: str) -> list[bytes]:
        return list(self.manifests(self._repository.referrers(digest, kind)).values())

    def remove(self, tags: Collection[str]) -> None:
        for digest in {self._repository.digest_of(tag) for tag in tags} - {""}:
            self._repository.remove(digest)

    def sweep(self) -> int:
        return 0


@contextmanager
def open_registry(
    place: str, name: str, known: Sequence[str] = (), *, environment: Mapping[str, str], insecure: bool
) -> Iterator[Registry]:
    """Open the remote. `known` are the places of others that may have the same blobs.

    UsageError if a registry has no such repositories, or httpx is missing.
    """
    parsed = reference.parse(place)
    if ":" in place.partition("/")[2]:
        raise UsageError(
            f"{name} has a tag: the tags are the ids of layers", hint=f"write {name.rpartition(':')[0]}"
        )
    others = [each.repository for each in map(reference.parse, known) if each.host == parsed.host]
    with Repository(
        *(parsed.host, parsed.repository, None),
        others=[each for each in others if each != parsed.repository],
        environment=environment,
        insecure=insecure,
    ) as repository:
        yield Registry(name, repository)
