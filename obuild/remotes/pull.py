"""Fetch layers from a remote. Each is a draft until all its digests are right; then it is committed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from obuild.errors import ObuildError, StoreError, UsageError
from obuild.guests import profile
from obuild.guests.profile import Card
from obuild.host import failpoints, parallel
from obuild.host.qcow2 import BLOCK, Extent, Writer
from obuild.plan.keys import LayerId
from obuild.remotes import content, manifests, pieces
from obuild.remotes.layer import Blob, Config, Manifest, content_of, read_config
from obuild.remotes.manifests import Found, damaged
from obuild.remotes.oci import digest_of
from obuild.remotes.protocol import IN_MEMORY, WORKERS, Progress, Remote, Unusable
from obuild.remotes.slices import SLICE, Slice
from obuild.store.index import Index
from obuild.store.layers import Draft, Store

#: Gives the blocks with this store's own keys for a base with such a card: offsets, and what to write there.
OwnKeys = Callable[[Card], Sequence[tuple[int, bytes]]]


#: A private key that a card may name, below the store.
_KEY = re.compile(r"base-image/[A-Za-z0-9][A-Za-z0-9._-]*\.key")


class _Job(NamedTuple):
    """A blob, the digest and the length of what is in it, and the file it is a piece of, or the slice."""

    blob: Blob
    digest: str
    length: int
    file: str
    number: int
    piece: Slice | None


def chain(remote: Remote, tip: Found) -> list[Found]:
    """A layer and all its ancestors, the base first. ObuildError if one is not there."""
    ancestors = config_of(remote, tip).ancestors
    there = manifests.of(remote, ancestors)
    if missing := [id for id in ancestors if id not in there]:
        hint = "push it again from a store that has it"
        raise ObuildError(f"{remote.name} lacks layer {missing[-1][:12]}, below {tip.id[:12]}", hint=hint)
    return [*(Found(id, there[id]) for id in reversed(ancestors)), tip]


def config_of(remote: Remote, found: Found) -> Config:
    """What a layer is. ObuildError if it does not fit its id or its manifest."""
    data = remote.get(found.manifest.config)
    try:
        return read_config(data, found.manifest, found.id)
    except (ValueError, TypeError, KeyError) as error:
        raise damaged(remote, found.id, error) from error


def pull(
    store: Store,
    remote: Remote,
    layers: Sequence[Found],
    own_keys: OwnKeys,
    *,
    progress: Progress = lambda done, total: None,
    done: Callable[[LayerId], object] = lambda id: None,
) -> None:
    """Fetch those layers of a chain that the store lacks. `done` is called with each layer that was fetched.

    ObuildError if one does not fit on what the store has: a layer that was made here may have other content.
    """
    with ExitStack() as tip:  # holds the current layer, and so all below it
        for found in layers:
            while True:
                with ExitStack() as stack:
                    if stack.enter_context(store.use(found.id)) is not None:
                        held = stack.pop_all()
                        break
                with store.claim(found.id) as claim:
                    if claim.held and store.find(found.id) is None:
                        fetch(store, remote, found, own_keys, progress=progress)
                        done(found.id)
            tip.pop_all().close()
            tip.push(held)


def fetch(
    store: Store,
    remote: Remote,
    found: Found,
    own_keys: OwnKeys,
    *,
    progress: Progress = lambda done, total: None,
) -> None:
    """Fetch a layer. The caller has the claim on it, and its parent in use."""
    config = config_of(remote, found)
    told = found.id
    if config.parent is not None:
        if store.find(config.parent) is None:
            raise StoreError(f"layer {config.parent} was removed from the store", hint="try again")
        told = LayerId(content_of(content.of(store, config.parent), config.size, config.slices))
    if told != found.manifest.content:
        parent = (config.parent or found.id)[:12]
        raise Unusable(
            f"layer {found.id[:12]} in {remote.name} was built on another build of {parent} than is in the store",
            hint=f"`obuild rm {parent}` and try again: then that is fetched, too",
        )
    with store.draft(config) as draft, _unfinished(store, config) as image:
        try:
            _fill(remote, found.manifest, config, draft, image, own_keys, progress)
        except ValueError as error:
            raise damaged(remote, found.id, error) from error
        failpoints.reach("pull.filled")
        image.rename(draft.image)
    content.remember(store, found.id, told)
    with Index(store) as index:
        index.add(config.id, config.parent, config.op, config.created, config.seconds)


@contextmanager
def _unfinished(store: Store, config: Config) -> Iterator[Path]:
    """Where the image of a layer is written: what an interrupted try has fetched is there, for the next to go on.

    It is removed if the disk is full, or if there is little to go on with.
    """
    name = f"layer-{config.id}"
    with store.downloads.lock(name):
        image = store.downloads.begin(name)
        try:
            yield image
        except OSError:
            image.unlink(missing_ok=True)
            raise
        finally:
            if len(config.slices) < 2:
                image.unlink(missing_ok=True)


def read_file(remote: Remote, found: Found, config: Config, name: str) -> Iterator[bytes]:
    """A file of a layer, in pieces. ObuildError if it is damaged."""
    try:
        yield from _file(remote, found.manifest, config, name)
    except ValueError as error:
        raise damaged(remote, found.id, error) from error


def _file(remote: Remote, manifest: Manifest, config: Config, name: str) -> Iterator[bytes]:
    """A file of a layer, in pieces. ValueError if it is damaged."""
    for job in _jobs(manifest, config):
        if job.file == name:
            yield pieces.get(remote, job.blob, job.digest, job.length)


def _fill(
    remote: Remote,
    manifest: Manifest,
    config: Config,
    draft: Draft,
    place: Path,
    own_keys: OwnKeys,
    progress: Progress,
) -> None:
    """Write all files of a draft, and its image to `place`, where a part of it may be.

    ValueError if something has the wrong digest or size.
    """
    jobs = list(_jobs(manifest, config))
    total, count = sum(job.length for job in jobs), 0
    with ExitStack() as stack:
        files = {"log": draft.log}
        for file in config.files:
            if file.name != "log":
                files[file.name] = stack.enter_context((draft.path / file.name).open("wb"))
        blocks = () if config.parent else _key_blocks(remote, manifest, config, own_keys)
        data = [*_extents(config.slices, "data"), *((offset, len(block)) for offset, block in blocks)]
        zeros = _extents(config.slices, "zeros") if config.parent else ()
        begun = place.exists()
        writer = Writer(place, config.size, data, zeros, backing=draft.below, go_on=True)
        image = stack.enter_context(writer)

        def take(job: _Job) -> int:
            if begun and job.piece and _has(image, job.piece):
                return job.length
            content = pieces.get(remote, job.blob, job.digest, job.length)
            if job.piece is None:
                _write(files[job.file].fileno(), content, job.number * SLICE)
            else:
                done, view = 0, memoryview(content)
                for start, length in job.piece.data:
                    image.write(job.piece.offset + start, view[done : done + length])
                    done += length
            failpoints.reach("pull.blob")
            return job.length

        for length in parallel.each(take, jobs, WORKERS, weight=lambda job: 2 * job.length, most=IN_MEMORY):
            count += length
            progress(count, total)
        for offset, block in blocks:
            image.write(offset, block)


def _has(image: Writer, piece: Slice) -> bool:
    """Whether an image has a slice already. It may hold anything: only the digest counts."""
    return (
        digest_of(b"".join(image.read(piece.offset + start, length) for start, length in piece.data))
        == piece.digest
    )


def _jobs(manifest: Manifest, config: Config) -> Iterator[_Job]:
    """What is in each blob of a layer, in the order of its manifest."""
    blobs = iter(manifest.blobs)
    for file in config.files:
        for number, digest in enumerate(file.digests):
            length = min(SLICE, file.size - number * SLICE)
            yield _Job(next(blobs), digest, length, file.name, number, None)
    for piece in config.slices:
        if piece.data:
            yield _Job(next(blobs), piece.digest, piece.length, "", 0, piece)


def _write(descriptor: int, content: bytes, offset: int) -> None:
    done = 0
    while done < len(content):
        done += os.pwrite(descriptor, content[done:], offset + done)


def _extents(slices: Sequence[Slice], name: str) -> Iterator[Extent]:
    for piece in slices:
        for start, length in getattr(piece, name):
            yield piece.offset + start, length


def _key_blocks(
    remote: Remote, manifest: Manifest, config: Config, own_keys: OwnKeys
) -> Sequence[tuple[int, bytes]]:
    """The blocks of a base with this store's keys. ValueError if its card has a wrong place for them."""
    card_file = b"".join(_file(remote, manifest, config, profile.NAME))
    if not card_file:
        return ()
    try:
        card = profile.parse(card_file.decode(), where=profile.NAME)
        if card.key and not _KEY.fullmatch(card.key):
            raise ValueError(f"its card names the key {card.key!r}, which is not that of a base image")
        blocks = own_keys(card)
    except UsageError as error:
        raise ValueError(error.message) from error
    if any(offset % BLOCK or offset + len(block) > config.size for offset, block in blocks):
        raise ValueError("its card has a place for keys that is not on the disk")
    return blocks
