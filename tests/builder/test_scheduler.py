"""Stages in parallel, without machines."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from obuild.builder.scheduler import Make, Parallel
from obuild.builder.stages import PlannedStage, plan_stages
from obuild.errors import StepFailed
from obuild.events import Place, StageEnded, StageStarted, Teller
from obuild.guests.profile import Card
from obuild.host.process import CancelScope
from obuild.plan.keys import LayerId
from obuild.plan.planner import Plan, plan
from obuild.plan.steps import Base, Built
from obuild.spec import Stage, parse
from tests.support.fakes import Heard

BASE = Base("b", Path("/nowhere"), "d" * 64, (1, 2, 3), Card())


def built(name: str) -> Built:
    return Built(LayerId(name), BASE)


def stages(*inner: str) -> PlannedStage:
    """Plan stages on bases that the spec names, and that need not exist."""

    def one(stage: Stage, builds: Mapping[str, Stage]) -> Plan:
        names = {stage.base, *(build.base for build in builds.values())}
        return plan(stage, source=Path(), bases={name: BASE._replace(name=name) for name in names}, builds=builds)

    return plan_stages(parse(f"({' '.join(inner)} (from top))".encode()), one)


def run(make: Make, stage: PlannedStage, heard: Heard, jobs: int = 4) -> LayerId:
    return Parallel(make, heard.tell, jobs, CancelScope()).build(stage).layer


def test_each_stage_gets_the_builds_that_it_copies_from() -> None:
    seen = {}

    def make(stage: PlannedStage, scope: Mapping[str, Built], tell: Teller) -> Built:
        seen[stage.plan.base.name] = {name: found.layer for name, found in scope.items()}
        return built(f"made-{stage.plan.base.name}")

    spec = stages(
        "(build x ((from a)))",
        "(build y ((from b) (copy (from (build x)) (src f) (dst /g))))",
        "(build x ((build x ((from c))) (from d) (copy (from (build x)) (src f) (dst /g))))",
    )
    assert run(make, spec, Heard()) == "made-top"
    assert seen == {"a": {}, "b": {"x": "made-a"}, "c": {}, "d": {"x": "made-c"}, "top": {}}


def test_independent_stages_run_at_once_up_to_the_limit() -> None:
    meeting = threading.Barrier(2, timeout=30)
    running: list[str] = []
    most = []

    def make(stage: PlannedStage, scope: Mapping[str, Built], tell: Teller) -> Built:
        running.append(stage.plan.base.name)
        most.append(len(running))
        if stage.plan.base.name != "top":
            meeting.wait()
        running.remove(stage.plan.base.name)
        return built(stage.plan.base.name)

    inner = [f"(build {name} ((from {name})))" for name in ("a", "b", "c", "d")]
    run(make, stages(*inner), Heard(), jobs=2)
    assert max(most) == 2


def test_events_name_their_stage_and_when_it_ends() -> None:
    def make(stage: PlannedStage, scope: Mapping[str, Built], tell: Teller) -> Built:
        return built(stage.plan.base.name)

    heard = Heard()
    run(make, stages("(build x ((build y ((from a))) (from b)))"), heard)
    assert heard.at(StageStarted) == heard.at(StageEnded) == [Place("x/y"), Place("x"), Place("")]
    assert [(ended.name, ended.failed) for ended in heard.of(StageEnded)] == [
        ("y", False),
        ("x", False),
        ("", False),
    ]


def test_a_failing_stage_is_reported_as_ended() -> None:
    def make(stage: PlannedStage, scope: Mapping[str, Built], tell: Teller) -> Built:
        raise StepFailed("no")

    heard = Heard()
    with pytest.raises(StepFailed):
        run(make, stages("(build x ((from a)))"), heard)
    assert [(ended.name, ended.failed) for ended in heard.of(StageEnded)] == [("x", True)]


def test_the_first_failure_is_raised() -> None:
    def make(stage: PlannedStage, scope: Mapping[str, Built], tell: Teller) -> Built:
        raise StepFailed(f"{stage.plan.base.name} failed")

    with pytest.raises(StepFailed, match="a failed"):
        run(make, stages("(build x ((build y ((from a))) (from b)))"), Heard())
