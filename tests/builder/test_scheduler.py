"""Stages side by side, without machines."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from obuild.builder.scheduler import Make, Parallel
from obuild.errors import StepFailed
from obuild.events import Place, StageEnded, StageStarted, Teller
from obuild.guests.profile import Card
from obuild.host.process import CancelScope
from obuild.plan.keys import LayerId
from obuild.plan.steps import Base, Built
from obuild.spec import Stage, parse
from tests.support.fakes import Heard

BASE = Base("b", Path("/nowhere"), "d" * 64, (1, 2, 3), Card())


def built(name: str) -> Built:
    return Built(LayerId(name), BASE)


def stages(*inner: str) -> Stage:
    return parse(f"({' '.join(inner)} (from top))".encode())


def run(make: Make, stage: Stage, heard: Heard, jobs: int = 4) -> LayerId:
    return Parallel(make, heard.tell, jobs, CancelScope()).build(stage).layer


def test_each_stage_gets_the_builds_that_it_copies_from() -> None:
    seen = {}

    def make(stage: Stage, scope: Mapping[str, Built], tell: Teller) -> Built:
        seen[stage.base] = {name: found.layer for name, found in scope.items()}
        return built(f"made-{stage.base}")

    spec = stages(
        "(build x ((from a)))",
        "(build y ((from b) (copy (from (build x)) (src f) (dst /g))))",
        "(build x ((build x ((from c))) (from d) (copy (from (build x)) (src f) (dst /g))))",
    )
    assert run(make, spec, Heard()) == "made-top"
    assert seen == {"a": {}, "b": {"x": "made-a"}, "c": {}, "d": {"x": "made-c"}, "top": {}}


def test_independent_stages_run_at_once_but_no_more_than_may() -> None:
    meeting = threading.Barrier(2, timeout=30)
    running: list[str] = []
    most = []

    def make(stage: Stage, scope: Mapping[str, Built], tell: Teller) -> Built:
        running.append(stage.base)
        most.append(len(running))
        if stage.base != "top":
            meeting.wait()
        running.remove(stage.base)
        return built(stage.base)

    inner = [f"(build {name} ((from {name})))" for name in ("a", "b", "c", "d")]
    run(make, stages(*inner), Heard(), jobs=2)
    assert max(most) == 2


def test_events_say_which_stage_they_are_of_and_when_it_ends() -> None:
    def make(stage: Stage, scope: Mapping[str, Built], tell: Teller) -> Built:
        return built(stage.base)

    heard = Heard()
    run(make, stages("(build x ((build y ((from a))) (from b)))"), heard)
    assert heard.at(StageStarted) == heard.at(StageEnded) == [Place("x/y"), Place("x"), Place("")]
    assert [(ended.name, ended.failed) for ended in heard.of(StageEnded)] == [
        ("y", False),
        ("x", False),
        ("", False),
    ]


def test_a_stage_that_fails_has_ended_too() -> None:
    def make(stage: Stage, scope: Mapping[str, Built], tell: Teller) -> Built:
        raise StepFailed("no")

    heard = Heard()
    with pytest.raises(StepFailed):
        run(make, stages("(build x ((from a)))"), heard)
    assert [(ended.name, ended.failed) for ended in heard.of(StageEnded)] == [("x", True)]


def test_the_first_failure_is_the_one_that_is_raised() -> None:
    def make(stage: Stage, scope: Mapping[str, Built], tell: Teller) -> Built:
        raise StepFailed(f"{stage.base} failed")

    with pytest.raises(StepFailed, match="a failed"):
        run(make, stages("(build x ((build y ((from a))) (from b)))"), Heard())
