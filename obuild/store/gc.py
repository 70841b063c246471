"""Free space: plan what to remove, in which order and why; then remove it.

`plan` changes nothing, so a dry run prints the plan. `carry_out` checks each item again under its locks: what a
build needs is kept, and so is what was used since the plan. Each removal is complete in itself, so `carry_out` may
be interrupted at any time.

There are two groups of items. Those of the *stock* are useful, and the least recently used go first; the last use
of a layer, a cache or a warm state is its folder's mtime. Those of the *spare* are useless.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from pathlib import Path

from obuild.errors import StoreError
from obuild.host import locks, units
from obuild.host.regular import is_file, is_folder
from obuild.plan.keys import LayerId
from obuild.store import parts, unpacked, usage, warm
from obuild.store.layers import Store

#: The prefix of files that are being written, and an age that no file being written reaches, in seconds.
_UNFINISHED, _UNFINISHED_FOR = ".", 86400

Parents = dict[LayerId, LayerId | None]


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a store. `size` is in bytes on disk, `used` is its last use in seconds since the epoch.

    `stands_on` is the layer that must be removed after it; `why` is the reason why it goes or stays.
    """

    kind: str
    name: str
    size: int
    used: float
    stands_on: str | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """The items to remove, in order; those kept only because they are in use or tagged; and the bytes left after.

    `kept` counts layers, caches, downloads and warm states. `short` is how many bytes less will be free than
    was asked for.
    """

    items: tuple[Item, ...]
    in_use: tuple[Item, ...]
    kept: int
    short: int

    @property
    def size(self) -> int:
        return sum(item.size for item in self.items)


@dataclass(frozen=True, slots=True)
class Kind:
    """The functions of one kind of item: list them (at a time), last use (None: gone), whether in use, remove.

    `remove` checks again under the locks, and returns False if the item is in use, or already gone. It may use
    and extend the known parents of layers. `noun` is its name for people.
    """

    find: Callable[[Store, float], Iterable[Item]]
    used: Callable[[Store, Item], float | None]
    in_use: Callable[[Store, Item], bool]
    remove: Callable[[Store, Item, Parents], bool]
    noun: str = "leftover"


def plan(
    store: Store,
    *,
    now: float,
    keep_bytes: int | None = None,
    older_than: float | None = None,
    free_bytes: int = 0,
    all_layers: bool = False,
) -> Plan:
    """Plan what to remove: without options only the spare; with `all_layers` also all layers and warm states.

    Otherwise also so much of the stock that the rest takes at most `keep_bytes`, was used in the last `older_than`
    seconds, and `free_bytes` become free; all given conditions are met.
    """
    spare = [item for kind in SPARE.values() for item in kind.find(store, now)]
    stock = _find(store, STOCK, now)
    total = sum(item.size for item in stock)
    if all_layers:
        stock = [item for item in stock if item.kind != "cache"]
    need = max(0 if keep_bytes is None else total - keep_bytes, free_bytes - sum(item.size for item in spare))
    before = float("-inf") if older_than is None else now - older_than
    before = float("inf") if all_layers else before
    chosen, in_use = _choose(store, stock, before=before, need=need)
    return _plan([*spare, *chosen], in_use, total, chosen, need)


def prune(store: Store, *, before: float, limit: int | None = None) -> Plan:
    """The layers not used since `before`, at most `limit`, least recently used first."""
    stock = _find(store, ("layer",), before)
    total = sum(item.size for item in stock)
    chosen, in_use = _choose(store, stock, before=before, limit=limit)
    return _plan(chosen, in_use, total, chosen, 0)


def _find(store: Store, kinds: Iterable[str], now: float) -> list[Item]:
    return [item for kind in kinds for item in STOCK[kind].find(store, now)]


def _plan(items: Sequence[Item], in_use: Sequence[Item], total: int, chosen: Sequence[Item], need: int) -> Plan:
    freed = sum(item.size for item in chosen)
    return Plan(tuple(items), tuple(in_use), total - freed, max(0, need - freed))


def _choose(
    store: Store, stock: Sequence[Item], *, before: float, need: int = 0, limit: int | None = None
) -> tuple[list[Item], list[Item]]:
    """Choose everything in the stock not used since `before`, and more until it is `need` bytes.

    A layer is considered when no layer is built on it any more. Returns what to remove, and what was skipped
    because it is in use, or has a tag.
    """
    chosen: list[Item] = []
    in_use: list[Item] = []
    layers = {item.name: item for item in stock if item.kind == "layer"}
    tagged = store.tags.by_layer()
    standing = Counter(item.stands_on for item in stock if item.stands_on in layers)
    by_age = [
        (item.used, item.kind, item.name, item)
        for item in stock
        if item.kind != "layer" or not standing[item.name]
    ]
    heapify(by_age)
    date = units.date(before) if 0 < before < float("inf") else ""
    while by_age and (limit is None or len(chosen) < limit):
        *_, item = heappop(by_age)
        if item.used >= before and need <= 0:
            break  # everything else was used even later
        if item.kind == "layer" and item.name in tagged:
            in_use.append(replace(item, why=f"tagged {', '.join(tagged[LayerId(item.name)])}"))
            continue
        if STOCK[item.kind].in_use(store, item):
            in_use.append(replace(item, why="in use"))
            continue
        why = "least recently used"
        if item.used < before:
            why = f"not used since {date}" if date else "no tag keeps it"
        chosen.append(replace(item, why=why))
        need -= item.size
        if item.stands_on in layers:
            standing[item.stands_on] -= 1
            if not standing[item.stands_on]:
                below = layers[item.stands_on]
                heappush(by_age, (below.used, below.kind, below.name, below))
    return chosen, in_use


def carry_out(store: Store, plan: Plan, tell: Callable[[Item], object]) -> list[Item]:
    """Remove the items of a plan, in order; `tell` is called with each item that is removed.

    Returns the items that stayed, with the reason.
    """
    parents = store.parents() if any(item.kind in ("layer", "flat") for item in plan.items) else {}
    stayed = []
    for item in plan.items:
        kind = KINDS[item.kind]
        used = kind.used(store, item)
        if used is None:  # somebody else has removed it
            continue
        if used > item.used:
            stayed.append(replace(item, why="used since"))
        elif kind.remove(store, item, parents):
            tell(item)
        elif kind.used(store, item) is not None:
            stands = item.kind == "layer" and item.name in parents.values()
            tags = store.tags.by_layer().get(LayerId(item.name), []) if item.kind == "layer" else []
            why = "a layer is built on it" if stands else f"tagged {', '.join(tags)}" if tags else "in use"
            stayed.append(replace(item, why=why))
    return stayed


# -- layers


def _layers(store: Store, now: float) -> Iterator[Item]:
    known = _known(store)
    with os.scandir(store.result) as folders:
        for folder in folders:
            if folder.name in known:
                parent, size = known[LayerId(folder.name)]
                with suppress(FileNotFoundError):  # it is just being removed
                    yield Item("layer", folder.name, size, folder.stat().st_mtime, parent)


def _known(store: Store) -> dict[LayerId, tuple[LayerId | None, int]]:
    """Parent and size of each layer, from the index; empty if it cannot be opened, as on a full disk."""
    from obuild.store.index import Index, disk_usage

    try:
        with Index(store) as index:
            return {id: (kin.parent, kin.size) for id, kin in index.all_kin().items()}
    except StoreError:
        return {id: (parent, disk_usage(store, id)) for id, parent in store.parents().items()}


def _layer_used(store: Store, item: Item) -> float | None:
    return _mtime(store.result / item.name)


def _layer_in_use(store: Store, item: Item) -> bool:
    return _locked(store.result / item.name)


def _remove_layer(store: Store, item: Item, parents: Parents) -> bool:
    return store.remove(LayerId(item.name), parents)


# -- caches


def _caches(store: Store, now: float) -> Iterator[Item]:
    for name, archive in store.caches.archives().items():
        used = store.caches.last_used(name)
        if used is not None:
            yield Item("cache", name, usage.on_disk(archive) + unpacked.size_of(archive), used)


def _cache_used(store: Store, item: Item) -> float | None:
    return store.caches.last_used(item.name)


def _cache_in_use(store: Store, item: Item) -> bool:
    return store.caches.in_use(item.name)


def _remove_cache(store: Store, item: Item, parents: Parents) -> bool:
    return store.caches.evict(item.name, used=item.used)


# -- downloads


def _downloads(store: Store, now: float) -> Iterator[Item]:
    for name in store.downloads.names():
        path = store.downloads.folder / name
        if (used := _mtime(path)) is not None:
            yield Item("download", name, usage.on_disk(path), used)


def _download_used(store: Store, item: Item) -> float | None:
    return _mtime(store.downloads.folder / item.name)


def _download_in_use(store: Store, item: Item) -> bool:
    return store.downloads.in_use(item.name)


def _remove_download(store: Store, item: Item, parents: Parents) -> bool:
    return store.downloads.remove(item.name)


# -- warm states


def _warm(store: Store, now: float) -> Iterator[Item]:
    """Machines that a build may resume, each on a layer."""
    for id in store.states.ids():
        used = _mtime(store.states.folder / id)
        if used is not None and not warm.outdated(store, id):
            yield Item("warm", id, usage.on_disk(store.states.folder / id), used, stands_on=id)


def _warm_used(store: Store, item: Item) -> float | None:
    return _mtime(store.states.folder / item.name)


def _warm_in_use(store: Store, item: Item) -> bool:
    return _locked(store.states.folder / item.name)


def _remove_warm(store: Store, item: Item, parents: Parents) -> bool:
    return store.states.remove(LayerId(item.name))


# -- what is useless


def _rubbish(store: Store, now: float) -> Iterator[Item]:
    """Drafts and copies without an owner. Opening a store removes them; these have appeared since."""
    for path in store.unfinished():
        used = _mtime(path)
        if used is not None and store.is_rubbish(path):
            name = str(path.relative_to(store.root))
            yield Item("rubbish", name, usage.on_disk(path), used, why="the process that made it has died")


def _rubbish_used(store: Store, item: Item) -> float | None:
    return _mtime(store.root / item.name)


def _remove_rubbish(store: Store, item: Item, parents: Parents) -> bool:
    return store.drop(store.root / item.name)


def _memos(store: Store, now: float) -> Iterator[Item]:
    """Manifests of layers that are gone, and memos that a crash left half written."""
    there = set(os.listdir(store.result))
    names = os.listdir(store.manifests) if store.manifests.is_dir() else []
    for name in filter(parts.MEMO.fullmatch, names):
        if not is_file(store.manifests / name):  # `fsck` reports what is not ours
            continue
        used = _mtime(store.manifests / name)
        written = name.startswith(_UNFINISHED) and used is not None and used > now - _UNFINISHED_FOR
        if name.partition("-")[0] not in there and not written and used is not None:
            yield Item("memo", name, usage.on_disk(store.manifests / name), used, why="its layer is gone")


def _memo_used(store: Store, item: Item) -> float | None:
    return _mtime(store.manifests / item.name)


def _remove_memo(store: Store, item: Item, parents: Parents) -> bool:
    (store.manifests / item.name).unlink(
        missing_ok=True
    )  # if its layer has just been made again, this only costs time
    return True


def _unpacked(store: Store, now: float) -> Iterator[Item]:
    """Unpacked caches that no step would take: the archive has changed since, or the host has booted again."""
    for name in store.caches.outdated():
        folder = unpacked.folder_of(store.caches.file(name))
        if (used := _mtime(folder)) is not None:
            yield Item("unpacked", name, usage.on_disk(folder), used, why="it would be unpacked again")


def _unpacked_used(store: Store, item: Item) -> float | None:
    return _mtime(unpacked.folder_of(store.caches.file(item.name)))


def _remove_unpacked(store: Store, item: Item, parents: Parents) -> bool:
    return store.caches.forget(item.name)


def _flats(store: Store, now: float) -> Iterator[Item]:
    """Flattened copies of layers without children: only children need them."""
    folder = store.flats.folder
    names = [path.name for path in parts.entries(folder, parts.ID)] if folder.is_dir() else []
    needed = set(store.parents().values()) if names else set()
    for name in names:
        used = _mtime(folder / name)
        if name not in needed and used is not None:
            yield Item("flat", name, usage.on_disk(folder / name), used, why="no layer is built on its layer")


def _flat_used(store: Store, item: Item) -> float | None:
    return _mtime(store.flats.folder / item.name)


def _remove_flat(store: Store, item: Item, parents: Parents) -> bool:
    """As with a layer, making a child holds the layer, so under our lock one more look sees every child."""
    layer = store.result / item.name
    with locks.folder_lock(layer, wait=False) as free:
        store.add_parents(parents)
        stands = any(parent == item.name and store.find(child) for child, parent in parents.items())
        if stands or (is_folder(layer) and not free):
            return False
        store.flats.remove(LayerId(item.name))
        return True


def _stale(store: Store, now: float) -> Iterator[Item]:
    """Machines that were saved before the host booted, or whose layers are gone."""
    for id in store.states.ids():
        why, used = warm.outdated(store, id), _mtime(store.states.folder / id)
        if why and used is not None:
            yield Item("stale", id, usage.on_disk(store.states.folder / id), used, why=why)


def _unsent(store: Store, now: float) -> Iterator[Item]:
    """Images that an interrupted `publish` would send the rest of: it can make others."""
    for name in store.outbox.waiting():
        folder = store.outbox.folder / name
        if (used := _mtime(folder)) is not None:
            yield Item("unsent", name, usage.on_disk(folder), used, why="its publication was interrupted")


def _unsent_used(store: Store, item: Item) -> float | None:
    return _mtime(store.outbox.folder / item.name)


def _remove_unsent(store: Store, item: Item, parents: Parents) -> bool:
    return store.outbox.remove(item.name)


def _never(store: Store, item: Item) -> bool:
    return False  # otherwise it would not be spare


def _locked(folder: Path) -> bool:
    with locks.folder_lock(folder, wait=False) as free:
        return not free


def _mtime(path: Path) -> float | None:
    with suppress(FileNotFoundError):
        return path.stat().st_mtime
    return None


#: What is removed by last use.
STOCK = {
    "layer": Kind(_layers, _layer_used, _layer_in_use, _remove_layer, "layer"),
    "cache": Kind(_caches, _cache_used, _cache_in_use, _remove_cache, "cache"),
    "download": Kind(_downloads, _download_used, _download_in_use, _remove_download, "download"),
    "warm": Kind(_warm, _warm_used, _warm_in_use, _remove_warm, "warm state"),
}
#: What is always removed, and first.
SPARE = {
    "rubbish": Kind(_rubbish, _rubbish_used, _never, _remove_rubbish),
    "flat": Kind(_flats, _flat_used, _never, _remove_flat),
    "stale": Kind(_stale, _warm_used, _never, _remove_warm),
    "unpacked": Kind(_unpacked, _unpacked_used, _never, _remove_unpacked),
    "memo": Kind(_memos, _memo_used, _never, _remove_memo),
    "unsent": Kind(_unsent, _unsent_used, _never, _remove_unsent),
}
KINDS = STOCK | SPARE
