"""What is in a remote, and what of it can go. A tag keeps its layer and all below it, as in a store."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from obuild.errors import ObuildError
from obuild.plan.keys import LayerId
from obuild.remotes import manifests, names
from obuild.remotes.protocol import Remote


@dataclass(frozen=True, slots=True)
class Listed:
    """A layer in a remote. `created` is in seconds since the epoch, `size` in bytes with what others share."""

    id: LayerId
    parent: LayerId | None
    op: str
    created: float
    size: int
    tags: tuple[str, ...]
    blobs: dict[str, int]


def listing(remote: Remote) -> list[Listed]:
    """All layers in a remote, the oldest first. ObuildError if one is damaged."""
    there = remote.tags()
    layers = names.ids(there)
    tagged = {names.tag_of(name): name for tag in there if (name := names.name_of(tag))}
    found = remote.manifests([*layers, *tagged])
    marks: dict[LayerId, list[str]] = {}
    for tag, name in tagged.items():
        if tag in found:
            marks.setdefault(names.read(remote, name, found[tag])[0][0], []).append(name)
    listed = []
    for id in layers:
        if id in found:
            manifest = manifests.checked(remote, id, found[id])
            blobs = dict((*manifest.blobs, manifest.config, (manifest.digest, manifest.size)))
            made = _time(manifest.created)
            listed.append(
                Listed(id, manifest.parent, manifest.op, made, manifest.total, tuple(marks.get(id, ())), blobs)
            )
    return sorted(listed, key=lambda each: (each.created, each.id))


def plan(layers: Sequence[Listed], *, before: float | None = None, keep_bytes: int | None = None) -> list[Listed]:
    """The layers to remove, each after those built on it: those made before a time, and the oldest beyond a size.

    Those with tags, and all that a layer that stays is built on, stay.
    """
    left = {each.id: each for each in layers}
    doomed: list[Listed] = []
    while True:
        needed = {each.parent for each in left.values()}
        leaves = [each for each in left.values() if each.id not in needed and not each.tags]
        oldest = min(leaves, key=lambda each: each.created, default=None)
        large = keep_bytes is not None and total(left.values()) > keep_bytes
        if oldest is None or not (large or (before is not None and oldest.created < before)):
            return doomed
        doomed.append(left.pop(oldest.id))


def total(layers: Collection[Listed]) -> int:
    """What layers take together, in bytes: what several have counts once."""
    blobs: dict[str, int] = {}
    for each in layers:
        blobs |= each.blobs
    return sum(blobs.values())


def with_descendants(layers: Sequence[Listed], ids: Collection[str]) -> list[Listed]:
    """These layers, and all that are built on them: each after those that are built on it."""
    found = [each for each in layers if each.id in ids]
    for each in found:  # grows during the loop
        found.extend(other for other in layers if other.parent == each.id and other not in found)
    return found[::-1]


def remove(remote: Remote, layers: Sequence[Listed], done: Callable[[LayerId], object]) -> None:
    """Remove layers one after the other, so that an interruption leaves no layer without its parent."""
    for each in layers:
        remote.remove([each.id])
        done(each.id)


def see_untagged(remote: Remote, layers: Sequence[Listed]) -> None:
    """ObuildError if one of the layers has a tag."""
    tags = [name for each in layers for name in each.tags]
    if tags:
        hint = f"obuild remote rm {' '.join(tags)} {remote.name} first: that removes the tags"
        raise ObuildError(f"the tags {', '.join(tags)} would lose their layers", hint=hint)


def _time(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return 0.0
