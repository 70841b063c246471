"""Give a kind what it makes an image from: downloads, keys, and packages checked against the lock file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from obuild.bases import catalog, lockfile, work_folder
from obuild.bases.all import KINDS
from obuild.bases.download import fetch
from obuild.bases.kind import Installed, Making, Recipe, Say
from obuild.bases.remote import Remote
from obuild.errors import UsageError
from obuild.executors.qemu.ssh import make_key
from obuild.host.process import CancelScope
from obuild.store.layers import Store
from obuild.store.usage import storage_errors


@dataclass(frozen=True, slots=True)
class Used:
    """What an image was made from: tables of the lock file, and downloads with their new digests."""

    pins: dict[str, Mapping[str, str]] = field(default_factory=dict)
    trusted: dict[str, str] = field(default_factory=dict)


def prepare(
    store: Store,
    plan: Recipe,
    *,
    say: Say,
    trust: bool = False,
    pins: Literal["", "keep", "use"] = "",
    progress: Callable[[int, int], object] = lambda done, total: None,
    scope: CancelScope | None = None,
    watch: bool = False,
) -> tuple[Making, Used]:
    """Return what the recipe's kind needs, and a record of what it takes, which grows while it works.

    With `trust`, a download without a digest is accepted, and its digest is written into the lock file. For `pins`
    see `Making`; for `progress` and `watch`, `making.make`.
    """
    used = Used()
    lock = lockfile.path_of(plan.path)

    def get(remote: Remote) -> Path:
        found, digest = fetch(remote, store.downloads, trust=trust, say=say, progress=progress)
        if not remote.digest:
            lockfile.write(lock, {**lockfile.read(lock), remote.urls[0]: digest})
            used.trusted[remote.urls[0]] = digest
        return found

    def installed(found: Installed) -> None:
        if pins == "use":
            lockfile.check(lock, plan.packages, found.packages)
        used.pins.update({"packages": found.packages, "releases": found.releases, "archive": found.archive})

    key = catalog.store_key(store)
    return Making(store, key, make_key(key), say, get, scope or CancelScope(), watch, pins, installed), used


def write_seeds(store: Store, plan: Recipe, folder: Path) -> list[Path]:
    """Write the media that the recipe's guest would get into a folder, as NAME-seed….

    They have the store's login key. UsageError if there are none, or no such folder.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}")
    with storage_errors(folder), work_folder.folder_in(folder) as work:
        made = KINDS[plan.kind].seeds(plan, make_key(catalog.store_key(store)), work)
        if not made:
            raise UsageError(f"recipe {plan.name!r} of kind {plan.kind} has no seed to write")
        return [path.replace(folder / f"{plan.name}-{path.name}") for path in made]
