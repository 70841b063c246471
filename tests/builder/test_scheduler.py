"""Stages side by side, without machines."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from obuild.builder.scheduler import Make, Parallel
from obuild.errors import StepFailed
from obuild.events import Listener, Note, Started
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
    return Parallel(make, heard, jobs, CancelScope()).build(stage).layer


def test_each_stage_gets_the_builds_that_it_copies_from() -> None:
    seen = {}

    def make(stage: Stage, scope: Mapping[str, Built], tell: Listener) -> Built:
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

    def make(stage: Stage, scope: Mapping[str, Built], tell: Listener) -> Built:
        running.append(stage.base)
        most.append(len(running))
        if stage.base != "top":
            meeting.wait()
        running.remove(stage.base)
        return built(stage.base)

    inner = [f"(build {name} ((from {name})))" for name in ("a", "b", "c", "d")]
    run(make, stages(*inner), Heard(), jobs=2)
    assert max(most) == 2


def test_what_stages_say_is_not_mixed() -> None:
    first, second = threading.Event(), threading.Event()

    def make(stage: Stage, scope: Mapping[str, Built], tell: Listener) -> Built:
        if stage.base == "a":
            tell(Note("a1"))
            first.set()
            assert second.wait(30)
            tell(Note("a2"))
        elif stage.base == "b":
            assert first.wait(30)
            tell(Note("b1"))
            second.set()
        return built(stage.base)

    heard = Heard()
    run(make, stages("(build a ((from a)))", "(build b ((from b)))"), heard)
    texts = [event.text for event in heard if isinstance(event, Note | Started)]
    a = ['(build "a" …)', "a1", "a2", '--> finished "a"']
    b = ['(build "b" …)', "b1", '--> finished "b"']
    assert texts in (a + b, b + a)


def test_the_first_failure_is_the_one_that_is_raised() -> None:
    def make(stage: Stage, scope: Mapping[str, Built], tell: Listener) -> Built:
        raise StepFailed(f"{stage.base} failed")

    with pytest.raises(StepFailed, match="a failed"):
        run(make, stages("(build x ((build y ((from a))) (from b)))"), Heard())
