"""Send layers to a remote: each after its parent, and its manifest after all that it names."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from obuild.errors import ObuildError, StoreError
from obuild.guests import profile
from obuild.host import failpoints, parallel
from obuild.host.qcow2 import BLOCK
from obuild.host.regular import open_file
from obuild.plan.keys import LayerId
from obuild.remotes import content, manifests, pieces
from obuild.remotes.layer import (
    FILE,
    Blob,
    Config,
    File,
    Manifest,
    content_of,
    dump_config,
    dump_manifest,
    read_manifest,
)
from obuild.remotes.manifests import Found
from obuild.remotes.oci import MANIFEST, digest_of
from obuild.remotes.protocol import IN_MEMORY, WORKERS, Progress, Remote, Tagged, Unusable
from obuild.remotes.slices import SLICE, Cutter, Slice
from obuild.store.index import Index
from obuild.store.layers import Layer, Store


class _Piece(NamedTuple):
    """A part of a file of a layer, or of its image, which has no name."""

    name: str
    number: int


def push(
    store: Store,
    id: LayerId,
    remote: Remote,
    *,
    progress: Progress = lambda done, total: None,
    done: Callable[[LayerId, int], object] = lambda id, sent: None,
) -> list[Found]:
    """Send a layer and its ancestors, as far as the remote lacks them; returns them all, the base first.

    `done` is called with each layer that was sent, and the number of bytes. ObuildError if the remote has another
    build of one of them: layers that were built on ours do not fit on that.
    """
    with store.use(id) as held:
        if held is None:
            raise StoreError(f"layer {id} was removed from the store", hint="build again")
        chain = _chain(store, id)
        there = manifests.of(remote, chain)
        known = {blob.digest for each in there.values() for blob in each.blobs}
        for each in reversed(chain):  # the content of one is that of all below
            if each in there:
                _see_same(store, remote, each, there[each])
                break
        for number, each in enumerate(chain):
            if each not in there:
                there[each], sent = _send(store, remote, chain[: number + 1], known, progress)
                known.update(blob.digest for blob in there[each].blobs)
                done(each, sent)
        return [Found(each, there[each]) for each in chain]


def _chain(store: Store, id: LayerId) -> list[LayerId]:
    """A layer and its ancestors, the base first."""
    found = [id]
    while (parent := store.layer(found[-1]).parent) is not None:
        found.append(parent)
    return found[::-1]


def _see_same(store: Store, remote: Remote, id: LayerId, there: Manifest) -> None:
    if there.content != content.of(store, id):
        raise Unusable(
            f"{remote.name} has another build of layer {id[:12]}, with other content",
            hint=f"`obuild rm {id[:12]}` here, then pull it; or `obuild remote rm {id[:12]} {remote.name}`",
        )


def _send(
    store: Store, remote: Remote, chain: Sequence[LayerId], known: Collection[str], progress: Progress
) -> tuple[Manifest, int]:
    """Send the last layer of a chain, whose others are there; returns how many bytes were sent, too."""
    layer = store.layer(chain[-1])
    with ExitStack() as stack:
        cutter = stack.enter_context(Cutter(layer.image, blank=_key_blocks(layer)))
        names = sorted(name for name in _names(layer) if FILE.fullmatch(name))
        files = {name: stack.enter_context(open_file(layer.path / name)).fileno() for name in names}
        parts = [*_pieces(files), *(_Piece("", number) for number in cutter.numbers)]
        total, count, sent = len(parts) * SLICE, 0, 0

        def send(piece: _Piece) -> tuple[_Piece, Slice | str, Blob | None, int]:
            if piece.name:
                data = os.pread(files[piece.name], SLICE, piece.number * SLICE)
                what: Slice | str = digest_of(data)
            else:
                what, data = cutter.cut(piece.number)
                if not what.data:
                    return piece, what, None, 0
            return piece, what, *pieces.put(remote, data, known)

        def weight(piece: _Piece) -> int:
            return 2 * (SLICE if piece.name else cutter.length(piece.number))

        whats: dict[_Piece, Slice | str] = {}
        blobs: dict[_Piece, Blob] = {}
        for piece, what, blob, bytes_sent in parallel.each(send, parts, WORKERS, weight=weight, most=IN_MEMORY):
            whats[piece] = what
            if blob is not None:
                blobs[piece] = blob
            count, sent = count + SLICE, sent + bytes_sent
            progress(count, total)
        slices = [each for piece in parts if isinstance(each := whats[piece], Slice)]
        sized = {name: os.fstat(descriptor).st_size for name, descriptor in files.items()}
        config = Config(
            layer.key,
            tuple(reversed(chain[:-1])),
            *_row(store, layer),
            tuple(
                File(name, sized[name], tuple(str(whats[each]) for each in parts if each.name == name))
                for name in names
            ),
            cutter.size,
            tuple(each for each in slices if each.data or each.zeros),
        )
    told = layer.id
    if config.parent:
        told = LayerId(content_of(content.of(store, config.parent), config.size, config.slices))
        content.remember(store, layer.id, told)
    described = dump_config(config)
    sent += pieces.put_blob(remote, described, known)[1]
    manifest = dump_manifest(config, described, [blobs[piece] for piece in parts if piece in blobs], told)
    read = read_manifest(manifest)
    if not remote.tag(layer.id, Tagged(MANIFEST, manifest)):  # somebody else was faster
        there = manifests.of(remote, [layer.id]).get(layer.id)
        if there is None:
            raise ObuildError(f"layer {layer.id[:12]} was just removed from {remote.name}", hint="push it again")
        _see_same(store, remote, layer.id, there)
        read = there
    failpoints.reach("push.tagged")
    return read, sent


def _names(layer: Layer) -> Iterator[str]:
    for path in layer.path.rglob("*"):
        yield path.relative_to(layer.path).as_posix()


def _pieces(files: dict[str, int]) -> Iterator[_Piece]:
    for name, descriptor in files.items():
        for number in range(max(1, -(-os.fstat(descriptor).st_size // SLICE))):
            yield _Piece(name, number)


def _key_blocks(layer: Layer) -> list[int]:
    """Where a base's layer has the keys of this store, which stay here."""
    card = layer.path / profile.NAME
    if layer.parent is not None or not card.exists():
        return []
    about = profile.read(card)
    found = [offset for offset in (about.authorized_keys, about.host_key) if offset]
    if any(offset % BLOCK for offset in found):
        raise ObuildError(f"the card of layer {layer.id[:12]} has a place for keys that is no block of 4 KiB")
    return found


def _row(store: Store, layer: Layer) -> tuple[str, float, float]:
    """The op of a layer, when it was made, and how long that took."""
    with Index(store) as index:
        row = index.get(layer.id)
    return (row.op, row.created, row.seconds) if row else ("", _mtime(layer.path / "key"), 0.0)


def _mtime(path: Path) -> float:
    return path.stat().st_mtime
