"""What a build would do, and why: for each step, whether its layer is there, or how the nearest layer differs.

Only looks and compares: boots nothing, makes no base image, writes no layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from obuild.bases import catalog
from obuild.builder.stages import plan_stages
from obuild.plan import diff, keys
from obuild.plan.keys import Fields, LayerId
from obuild.plan.planner import PendingGraft, Plan, bases_of, plan
from obuild.plan.steps import Base, Import, Step
from obuild.spec import Stage
from obuild.store.layers import Layer, Store

if TYPE_CHECKING:
    from obuild.store.index import Index, Row

#: A step is compared with the layers used last, until this many characters of keys have been read, which takes
#: about a second. The key of a copy may list 100,000 files.
ENOUGH = 2_000_000

#: The most layers that a step is compared with: a parent may have 10,000 children.
MANY = 300

NOTHING_LIKE_IT = "no similar layer in the store"


@dataclass(frozen=True, slots=True)
class Outlook:
    """One step of a future build.

    `id` is None if it cannot be known yet. `why` explains in words why the layer is not there: how the step
    differs from `nearest`, the most similar stored layer.
    """

    op: str
    id: LayerId | None
    cached: bool
    why: tuple[str, ...] = ()
    nearest: LayerId | None = None


def forecast(
    stage: Stage,
    *,
    source: Path,
    store: Store,
    secrets: Sequence[str],
    say: catalog.Say = lambda text: None,
    executor: str = "qemu",
) -> list[Outlook]:
    """Return what a build of `stage` would find and make, step by step, inner builds first. Errors as for a build.

    `executor` is the kind that the build would use. `say` is called once for each base image that is stale.
    """
    bases = {name: _base(store, say, name) for name in bases_of(stage)}

    def one(stage: Stage, builds: Mapping[str, Stage]) -> Plan:
        return plan(stage, source=source, bases=bases, builds=builds, secrets=secrets, executor=executor)

    return [outlook for each in plan_stages(stage, one).all() for outlook in _forecast(each.plan, store)]


def _forecast(plan: Plan, store: Store) -> list[Outlook]:
    if plan.base.digest:
        with ExitStack() as stack:
            return list(_Forecaster(store, stack).steps(plan))
    why = f"the base image {plan.base.name!r} would be made from its recipe first; ids are known only then"
    first, *others = (each.headings[-1] for each in plan.actions)
    return [Outlook(first, None, False, (why,)), *(Outlook(op, None, False) for op in others)]


def _base(store: Store, say: catalog.Say, reference: str) -> Base:
    """Return the base. If it has yet to be made from its recipe, it has no digest."""
    found = catalog.look(store, reference)
    if found is not None:
        if why := catalog.stale(found.path):
            say(why)
        return found
    from obuild.bases import recipe, sources  # late: seldom needed

    name = reference.partition("@")[0]
    path = sources.find(name)
    assert path is not None, "catalog.look would have refused an unknown name"
    return Base(name, path, "", (0, 0, 0), recipe.load(path).card)


class _Forecaster:
    """Compares chains with the store. What it opens is closed with `stack`."""

    def __init__(self, store: Store, stack: ExitStack) -> None:
        self.store = store
        self.stack = stack

    def steps(self, plan: Plan) -> Iterator[Outlook]:
        known = plan.known
        yield from self.known(known)
        for each in plan.actions[len(known) :]:
            why = ""
            if isinstance(each.action, PendingGraft):
                why = f"what it copies is known once the build {each.action.extract.origin!r} is made"
            yield Outlook(each.headings[-1], None, False, (why,) if why else ())

    def known(self, steps: Iterable[Step]) -> Iterator[Outlook]:
        stood: LayerId | None = None  # the previous step's layer, or the layer nearest to it
        for step in steps:
            op = step.headings[-1]
            if self.store.find(step.id):
                stood = step.id
                yield Outlook(op, step.id, True)
                continue
            near = self.nearest(step, stood)
            if near is None:
                stood = None
                yield Outlook(op, step.id, False, (NOTHING_LIKE_IT,))
                continue
            layer, old = near
            stood = layer.id
            yield Outlook(op, step.id, False, tuple(diff.differences(old, keys.fields(step.key))), layer.id)

    @cached_property
    def index(self) -> Index:
        from obuild.store.index import Index  # late: needed only if a layer is not there

        return self.stack.enter_context(Index(self.store))

    def nearest(self, step: Step, stood: LayerId | None) -> tuple[Layer, Fields] | None:
        """Return the layer most similar to a step among the children of `stood`; if equal, the one used last."""
        if isinstance(step.action, Import):
            name = step.action.base.name  # a key holds only the content's digest
            candidates = [row for row in self.index.children(None) if _from(row.op) == name]
        else:
            candidates = self.index.children(stood) if stood else []
        new = keys.fields(step.key)
        best: tuple[float, Layer, Fields] | None = None
        read = 0
        for layer in self.used_last(candidates)[:MANY]:
            with suppress(FileNotFoundError):  # it is just being removed
                key = layer.key
                old = keys.fields(key)
                if diff.alike(old, new):
                    distance = diff.distance(old, new)
                    if best is None or distance < best[0]:
                        best = distance, layer, old
                read += len(key)
            if read > ENOUGH:
                break
        return best[1:] if best else None

    def used_last(self, rows: Iterable[Row]) -> list[Layer]:
        """Return the layers of `rows`, most recently used first."""
        used: list[tuple[float, Layer]] = []
        for row in rows:
            layer = self.store.layer(row.id)
            with suppress(FileNotFoundError):  # it is just being removed
                used.append((layer.path.stat().st_mtime, layer))
        return [layer for _, layer in sorted(used, key=lambda item: item[0], reverse=True)]


def _from(op: str) -> str:
    """Return the name in `(from NAME)` or `(from NAME@sha256:HEX)`."""
    return op.removeprefix("(from ").removesuffix(")").partition("@")[0]
