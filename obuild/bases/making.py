"""Make base images from recipes: on request, or when a spec needs one that the store does not have."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from obuild.bases import catalog, record
from obuild.bases.catalog import Say
from obuild.errors import UsageError
from obuild.events import Phase
from obuild.guests import profile
from obuild.host import locks
from obuild.host.process import CancelScope
from obuild.plan.steps import Base
from obuild.store.layers import Store
from obuild.store.usage import storage_errors

if TYPE_CHECKING:
    from obuild.bases.sources import Choices


def find(
    store: Store,
    reference: str,
    *,
    say: Say,
    making: Callable[[str], AbstractContextManager[Phase | str]] = nullcontext,
    scope: CancelScope | None = None,
) -> Base:
    """Return the base that `reference` names, as `catalog.look` does; if there is only a recipe, make it first.

    A stale base is used, with a note. While a base is made, `making` is entered with its name and hears of
    downloads; cancelling `scope` ends a machine that makes it.
    """
    name, _ = catalog.split(reference)
    found = catalog.look(store, reference)
    if found is None:
        say(f"base image {name!r} is not in the store yet; making it from its recipe")
        with making(name) as phase:
            path, _ = make(store, name, say=say, progress=_advancing(phase), scope=scope)
        return catalog.read(store, path, reference)
    if why := catalog.stale(found.path):
        say(why)
    return found


def make(
    store: Store,
    reference: str,
    *,
    say: Say,
    name: str = "",
    choices: Choices | None = None,
    again: Literal["no", "changed", "yes"] = "no",
    trust: bool = False,
    locked: bool = False,
    lock: bool = False,
    progress: Callable[[int, int], object] = lambda done, total: None,
    scope: CancelScope | None = None,
    watch: bool = False,
) -> tuple[Path, bool]:
    """Make a base image from a recipe, given by name or as a file. Return its path, and whether it was made now.

    It is called `name`, or like its recipe. One that is there already stays, unless `again` says otherwise:
    "changed" makes it if its recipe would give another one now, with the last time's choices if there are none.
    With `trust`, downloads without a digest are taken as they come, and their digests kept in the recipe's lock
    file; with `locked`, a recipe is refused that does not say the digest of every input, and packages are those of
    the lock file. With `lock` its packages are written there, and kept in the store. `progress` hears how many
    bytes of a download are there, and how many there will be, or 0. With `watch` a guest's screen can be seen.
    If two processes want the base, one makes it and the other waits. UsageError if there is no such recipe.
    """
    from obuild.bases import inputs, lockfile, recipe, sources
    from obuild.bases.all import KINDS
    from obuild.bases.kind import digest

    path = recipe_path(reference)
    name = catalog.checked(name or path.stem)
    with locks.file_lock(store.places.lock(name)):
        existing = catalog.image_path(store, name)
        made = record.read(existing) if existing else None
        if choices is None:
            last = made if again == "changed" else None
            choices = sources.Choices(last.profile, last.values) if last else sources.Choices()
        if existing and (again == "no" or (again == "changed" and made is None)):
            return existing, False  # an added image has no recipe and belongs to the user
        plan = recipe.load(path, choices, name=name)
        if locked and (what := KINDS[plan.kind].unpinned(plan)):
            raise UsageError(f"{path.stem} cannot be made with --locked: {what}")
        if existing and made and again == "changed" and made.digest == digest(plan):
            return existing, False
        with storage_errors(store.root), store.places.staged(name) as folder:
            out = folder / f"{name}.qcow2"
            pins: Literal["", "keep", "use"] = "keep" if lock else "use" if locked else ""
            making, used = inputs.prepare(
                store, plan, say=say, trust=trust, pins=pins, progress=progress, scope=scope, watch=watch
            )
            card = KINDS[plan.kind].make(plan, out, making)
            catalog.card_path(out).write_text(profile.dump(card))
            if lock:
                lockfile.write_tables(lockfile.path_of(path), used.pins)
            if used.trusted or lock:  # only now is the digest of all inputs known
                plan = recipe.load(path, choices, name=name)
            record.write(out, plan, choices, when=time.time())
        return store.base_image / out.name, True


def recipe_path(reference: str) -> Path:
    """Return the file of a recipe: a name means one that comes with obuild, and FILE.toml means that file."""
    from obuild.bases import sources
    from obuild.bases.table import nearest

    if reference.endswith(".toml") or "/" in reference:
        return Path(reference)
    path = sources.find(catalog.checked(reference))
    if path is None:
        hint = f"a file? write ./{reference}.toml; {nearest(reference, sources.names())}"
        raise UsageError(f"there is no recipe {reference!r}", hint=hint)
    return path


def _advancing(phase: Phase | str) -> Callable[[int, int], object]:
    """Return a function that reports the bytes of downloads to a phase."""
    last = 0

    def progress(done: int, total: int) -> None:
        nonlocal last
        if isinstance(phase, Phase) and done > last:
            phase.advance(done - last)
        last = done

    return progress
