"""Remotes of every kind, for tests."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from obuild.remotes.layer import Blob
from obuild.remotes.protocol import Remote, Tagged


@dataclass
class Watched:
    """A remote that notes what is asked of it: the names of methods, and the blobs that were sent or read."""

    remote: Remote
    calls: list[str] = field(default_factory=list)
    sent: list[Blob] = field(default_factory=list)
    read: list[Blob] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.remote.name

    def manifests(self, references: Sequence[str]) -> dict[str, bytes]:
        self.calls.append("manifests")
        return self.remote.manifests(references)

    def tags(self) -> list[str]:
        self.calls.append("tags")
        return self.remote.tags()

    def has(self, digest: str) -> bool:
        self.calls.append("has")
        return self.remote.has(digest)

    def get(self, blob: Blob) -> bytes:
        self.calls.append("get")
        self.read.append(blob)
        return self.remote.get(blob)

    def put(self, blob: Blob, data: bytes) -> None:
        self.calls.append("put")
        self.sent.append(blob)
        self.remote.put(blob, data)

    def tag(self, tag: str, manifest: Tagged, *, replace: bool = False) -> bool:
        self.calls.append("tag")
        return self.remote.tag(tag, manifest, replace=replace)

    def attach(self, manifest: Tagged, subject: str, kind: str) -> None:
        self.calls.append("attach")
        self.remote.attach(manifest, subject, kind)

    def attached(self, digest: str, kind: str) -> list[bytes]:
        self.calls.append("attached")
        return self.remote.attached(digest, kind)

    def remove(self, tags: Collection[str]) -> None:
        self.calls.append("remove")
        self.remote.remove(tags)

    def sweep(self) -> int:
        self.calls.append("sweep")
        return self.remote.sweep()
