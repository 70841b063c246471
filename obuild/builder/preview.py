"""What a build would do, and why: for each step, whether its layer is there, or how the nearest layer differs.

Only looks and compares: boots nothing, makes no base image, writes no layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from obuild.bases import catalog
from obuild.builder.reasons import Reasons
from obuild.builder.stages import outline, plan_stages
from obuild.events import PlannedStep
from obuild.plan.keys import LayerId
from obuild.plan.planner import PendingGraft, Plan, bases_of, plan
from obuild.plan.steps import Base, Step
from obuild.spec import Stage
from obuild.store.layers import Store

if TYPE_CHECKING:
    from obuild.store.index import Index


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


class StageOutlook(NamedTuple):
    """The future of one stage: its path, its plan as a build reports it, and the outlook of each step."""

    path: str
    planned: tuple[PlannedStep, ...]
    steps: tuple[Outlook, ...]


def forecast(
    stage: Stage,
    *,
    source: Path,
    store: Store,
    secrets: Sequence[str],
    say: catalog.Say = lambda text: None,
    executor: str = "qemu",
) -> list[StageOutlook]:
    """Return what a build of `stage` would find and make, stage by stage, inner ones first. Errors as for a build.

    `executor` is the kind that the build would use. `say` is called once for each base image that is stale.
    """
    bases = {name: _base(store, say, name) for name in bases_of(stage)}

    def one(stage: Stage, builds: Mapping[str, Stage]) -> Plan:
        return plan(stage, source=source, bases=bases, builds=builds, secrets=secrets, executor=executor)

    return [
        StageOutlook(each.path, outline(each, ()).steps, tuple(_forecast(each.plan, store)))
        for each in plan_stages(stage, one).all()
    ]


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
        reasons = Reasons(self.store)
        for step in steps:
            op = step.headings[-1]
            if self.store.find(step.id):
                yield Outlook(op, step.id, True)
            else:
                reason = reasons.missing(step, self.index)
                yield Outlook(op, step.id, False, reason.why, LayerId(reason.nearest) if reason.nearest else None)

    @cached_property
    def index(self) -> Index:
        from obuild.store.index import Index  # late: needed only if a layer is not there

        return self.stack.enter_context(Index(self.store))
