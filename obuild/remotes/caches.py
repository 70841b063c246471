"""Caches in a remote: an artifact each, under `cache-` and the digest of its name. The last push wins."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from obuild.errors import ObuildError, UsageError
from obuild.host import parallel, zstd
from obuild.host.regular import open_file
from obuild.remotes import oci, pieces
from obuild.remotes.layer import LARGEST_CONFIG, Blob
from obuild.remotes.oci import MANIFEST, digest_of
from obuild.remotes.protocol import IN_MEMORY, Remote, Tagged
from obuild.remotes.slices import SLICE
from obuild.store import caches
from obuild.store.layers import Store

ARTIFACT = "application/vnd.obuild.cache.v1"
_CONFIG = "application/vnd.obuild.cache.config.v1+json"
_PIECE = "application/vnd.obuild.file.v1+zstd"

PREFIX = "cache-"

#: So many pieces are in memory at once, unpacked and packed.
_WORKERS = IN_MEMORY // (2 * SLICE)

#: The longest name of a cache that is accepted, in characters.
_LONGEST = 80


def push_caches(store: Store, remote: Remote) -> Iterator[tuple[str, int]]:
    """Send all caches of a store; yields the name of each that was sent, and how many bytes that were."""
    for cache in store.caches.listing():
        with store.caches.borrow(cache.name) as copy:
            if copy.path.exists():
                with open_file(copy.path) as file:
                    yield cache.name, _push(remote, cache.name, file.fileno())


def _push(remote: Remote, name: str, descriptor: int) -> int:
    size = os.fstat(descriptor).st_size

    def send(number: int) -> tuple[int, str, Blob, int]:
        data = os.pread(descriptor, SLICE, number * SLICE)
        return number, digest_of(data), *pieces.put(remote, data)

    sent = sorted(parallel.each(send, range(-(-size // SLICE)), _WORKERS))
    config = oci.packed({"format": 1, "name": name, "size": size, "digests": [digest for _, digest, _, _ in sent]})
    _, count = pieces.put_blob(remote, config)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": ARTIFACT,
        "config": oci.descriptor(config, _CONFIG),
        "layers": [{"mediaType": _PIECE, **blob._asdict()} for _, _, blob, _ in sent],
    }
    remote.tag(_tag(name), Tagged(MANIFEST, oci.packed(manifest)), replace=True)
    return count + sum(each for *_, each in sent)


def pull_caches(store: Store, remote: Remote) -> Iterator[str]:
    """Replace the caches of a store by those in a remote; yields their names. Others stay."""
    tags = [tag for tag in remote.tags() if tag.startswith(PREFIX)]
    for tag, data in remote.manifests(tags).items():
        try:
            yield _pull(store, remote, tag, data)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ObuildError(f"the cache {tag[:20]} in {remote.name} cannot be used: {error}") from error


def _pull(store: Store, remote: Remote, tag: str, data: bytes) -> str:
    """Fetch a cache; returns its name. ValueError and others if it is damaged."""
    manifest = json.loads(data)
    config = json.loads(remote.get(_blob(manifest["config"], LARGEST_CONFIG)))
    name, size, digests = str(config["name"]), int(config["size"]), config["digests"]
    if manifest.get("artifactType") != ARTIFACT or tag != _tag(name) or len(name) > _LONGEST:
        raise ValueError("it is no cache, or has another name")
    if not len(digests) == len(manifest["layers"]) == -(-size // SLICE):
        raise ValueError("it has the wrong number of pieces")
    blobs = [_blob(each, zstd.bound(SLICE)) for each in manifest["layers"]]
    with ExitStack() as stack:
        copy = stack.enter_context(store.caches.borrow(name, empty=True))
        new = copy.path.with_suffix(".new")
        file = stack.enter_context(new.open("wb"))

        def take(number: int) -> None:
            length = min(SLICE, size - number * SLICE)
            content = pieces.get(remote, blobs[number], digests[number], length)
            os.pwrite(file.fileno(), content, number * SLICE)

        for _ in parallel.each(take, range(len(blobs)), _WORKERS):
            pass
        file.flush()
        try:
            caches.check(new)
        except UsageError as error:
            raise ValueError(f"its archive {error.message}") from error
        copy.replace(new)
    return name


def _blob(value: dict[str, Any], most: int) -> Blob:
    blob = Blob(str(value["digest"]), int(value["size"]))
    if not 0 <= blob.size <= most:
        raise ValueError("a blob is larger than what is in it")
    return blob


def _tag(name: str) -> str:
    return PREFIX + hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
