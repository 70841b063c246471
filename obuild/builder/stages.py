"""The planned stages of a spec: a tree, in which each stage has a unique path."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from types import MappingProxyType
from typing import NamedTuple

from obuild import events
from obuild.plan.planner import PendingGraft, Plan
from obuild.plan.steps import Action, Step
from obuild.spec import Stage


class PlannedStage(NamedTuple):
    """A stage of a build, with the builds directly inside it, in the order of the spec.

    `path` identifies the stage in events; `name` is its name in the spec, "" for the outermost stage. `paths` has
    the paths of the builds that it may copy from, by name.
    """

    path: str
    name: str
    plan: Plan
    inner: tuple[PlannedStage, ...] = ()
    paths: Mapping[str, str] = MappingProxyType({})

    def all(self) -> Iterator[PlannedStage]:
        """Yield this stage and all inside it, in the order in which they are built."""
        for stage in self.inner:
            yield from stage.all()
        yield self

    def origin(self, action: Action | PendingGraft) -> str:
        """The path of the stage that an action copies from; "" if it copies from none."""
        return self.paths[action.extract.origin] if isinstance(action, PendingGraft) else ""


def outline(stage: PlannedStage, steps: Sequence[Step]) -> events.Planned:
    """Return the plan of a stage as an event. `steps` are the steps whose ids are known, from the first on."""
    actions = stage.plan.actions
    ops = accumulate(len(each.headings) for each in actions)
    ids = [step.id for step in steps] + [""] * (len(actions) - len(steps))
    return events.Planned(
        tuple(
            events.PlannedStep(op, id, each.headings[-1], stage.origin(each.action))
            for op, id, each in zip(ops, ids, actions, strict=True)
        )
    )


def plan_stages(stage: Stage, plan: Callable[[Stage, Mapping[str, Stage]], Plan]) -> PlannedStage:
    """Plan a stage and all inside it. `plan` is called with each stage and the builds that it may copy from."""
    return _planned("", "", stage, {}, {}, plan)


def _planned(
    path: str,
    name: str,
    stage: Stage,
    builds: Mapping[str, Stage],
    paths: Mapping[str, str],
    plan: Callable[[Stage, Mapping[str, Stage]], Plan],
) -> PlannedStage:
    builds, paths = dict(builds), dict(paths)
    inner = []
    for inner_path, inner_name, inside in _inside(path, stage):
        inner.append(_planned(inner_path, inner_name, inside, builds, paths, plan))
        builds[inner_name] = inside
        paths[inner_name] = inner_path
    return PlannedStage(path, name, plan(stage, builds), tuple(inner), paths)


def _inside(path: str, stage: Stage) -> Iterator[tuple[str, str, Stage]]:
    """Yield the path, the name and the stage of each build directly inside the stage at `path`.

    If a name is used several times in a stage, the second is NAME#2.
    """
    taken: set[str] = set()
    for name, inner in stage.stages:
        unique, count = name, 1
        while unique in taken:
            count += 1
            unique = f"{name}#{count}"
        taken.add(unique)
        yield f"{path}/{unique}" if path else unique, name, inner
