"""Planned stages: their paths in events, their order, and which builds each may copy from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from obuild.builder.stages import plan_stages
from obuild.guests.profile import Card
from obuild.plan.planner import Plan
from obuild.plan.steps import Base
from obuild.spec import Stage, parse

BASE = Base("b", Path("/nowhere"), "d" * 64, (1, 2, 3), Card())


def test_each_build_in_a_stage_has_its_own_path() -> None:
    inner = b'(build a ((from x))) (build "a#2" ((from x))) (build a ((from x))) (build b ((from x)))'
    stage = parse(b"((build dev (" + inner + b" (from x))) (from x))")
    planned = plan_stages(stage, lambda stage, builds: Plan(BASE, ()))
    assert [(each.path, each.name) for each in planned.all()] == [
        ("dev/a", "a"),
        ("dev/a#2", "a#2"),
        ("dev/a#3", "a"),
        ("dev/b", "b"),
        ("dev", "dev"),
        ("", ""),
    ]


def test_a_stage_may_copy_from_the_builds_before_it_and_around_it() -> None:
    seen = {}

    def plan(stage: Stage, builds: Mapping[str, Stage]) -> Plan:
        seen[stage.base] = {name: build.base for name, build in builds.items()}
        return Plan(BASE, ())

    text = b"((build x ((from a))) (build y ((build x ((from b))) (build z ((from c))) (from d))) (from e))"
    plan_stages(parse(text), plan)
    assert seen == {
        "a": {},
        "b": {"x": "a"},
        "c": {"x": "b"},
        "d": {"x": "b", "z": "c"},
        "e": {"x": "a", "y": "d"},
    }
    assert list(seen) == ["a", "b", "c", "d", "e"]
