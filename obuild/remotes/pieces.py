"""Blobs of a remote that hold a piece of a file or of a disk, compressed."""

from __future__ import annotations

from collections.abc import Collection

from obuild.host import failpoints, zstd
from obuild.remotes.layer import Blob
from obuild.remotes.oci import digest_of
from obuild.remotes.protocol import Remote


def put(remote: Remote, data: bytes, known: Collection[str] = ()) -> tuple[Blob, int]:
    """Send a piece; returns its blob, and how many bytes were sent. Those in `known` are there already."""
    return put_blob(remote, zstd.compress(data), known)


def put_blob(remote: Remote, data: bytes, known: Collection[str] = ()) -> tuple[Blob, int]:
    """Send a blob as it is, unless it is there; returns it, and how many bytes were sent."""
    blob = Blob.of(data)
    if blob.digest in known or remote.has(blob.digest):
        return blob, 0
    remote.put(blob, data)
    failpoints.reach("push.blob")
    return blob, blob.size


def get(remote: Remote, blob: Blob, digest: str, length: int) -> bytes:
    """A piece of that length, in bytes, and with that digest. ValueError if the blob holds something else."""
    content = zstd.decompress(remote.get(blob), length)
    if len(content) != length or digest_of(content) != digest:
        raise ValueError(f"the blob {blob.digest} does not hold what its config says")
    return content
