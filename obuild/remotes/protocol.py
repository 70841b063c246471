"""What a remote is: a place where layers are kept as OCI artifacts. docs/remote.md describes what is in it.

A remote knows manifests and blobs, and nothing of layers. All its methods may be called from several threads at
once. ObuildError if the remote cannot be used; what it sends is checked by its digest, so what `get` and
`manifests` return by digest is right.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from obuild.errors import ObuildError
from obuild.remotes.layer import Blob

#: How many requests are under way at once.
WORKERS = 8

#: How much of slices, unpacked and packed, is in memory at once, in bytes.
IN_MEMORY = 16 << 20


class Unusable(ObuildError):
    """One layer in a remote cannot be used; others may."""


class Tagged(NamedTuple):
    """A manifest as it is stored: its media type, and its bytes."""

    media_type: str
    data: bytes


class Remote(Protocol):
    """Where layers are shared."""

    @property
    def name(self) -> str:
        """As the user has written it."""
        ...

    def manifests(self, references: Sequence[str]) -> dict[str, bytes]:
        """The manifests under these tags or digests, of those that are there: all are asked for at once."""
        ...

    def tags(self) -> list[str]:
        """All tags, sorted."""
        ...

    def has(self, digest: str) -> bool:
        """Whether a blob is there."""
        ...

    def get(self, blob: Blob) -> bytes:
        """A blob, which is not larger than it should be. ObuildError if it is not there, or has another digest."""
        ...

    def put(self, blob: Blob, data: bytes) -> None:
        """Store a blob. It appears as a whole."""
        ...

    def tag(self, tag: str, manifest: Tagged, *, replace: bool = False) -> bool:
        """Store a manifest under a tag. False if there is one already, and it is not to be replaced.

        All that it names must be there.
        """
        ...

    def attach(self, manifest: Tagged, subject: str, kind: str) -> None:
        """Store a manifest of this artifact type, whose field `subject` refers to the one with that digest."""
        ...

    def attached(self, digest: str, kind: str) -> list[bytes]:
        """The manifests of an artifact type that refer to the one with this digest."""
        ...

    def remove(self, tags: Collection[str]) -> None:
        """Remove tags, with their manifests. UsageError if the remote does not let us."""
        ...

    def sweep(self) -> int:
        """Remove the blobs that no manifest names; returns how many bytes that frees. Recent ones stay.

        0 if the remote does that itself.
        """
        ...


#: Gets the number of bytes of a layer that have been sent or fetched, and their total.
Progress = Callable[[int, int], object]

#: An open remote.
Opened = AbstractContextManager[Remote]
