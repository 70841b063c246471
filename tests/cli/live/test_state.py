"""The state of a build, as its events tell it."""

from __future__ import annotations

from pathlib import Path

from obuild.cli.live.output import KEPT, Output
from obuild.cli.live.state import LONGEST, Made, State
from obuild.events import (
    Done,
    Event,
    Hit,
    InRemote,
    Missing,
    PhaseEnded,
    PhaseStarted,
    Place,
    Planned,
    PlannedStep,
    Progress,
    Saved,
    StageEnded,
    StageStarted,
    Started,
    What,
)
from obuild.events import Output as Printed

HERE = Place("dev", "abc", 2)


def state(*said: What, place: Place = HERE) -> State:
    """The state after these events, one second apart."""
    found = State()
    for time, what in enumerate(said):
        found.apply(Event(what, place, 100.0 + time))
    return found


BEGUN: tuple[What, ...] = (
    Planned(tuple(PlannedStep(op, "", "") for op in range(4))),
    StageStarted("dev"),
    Started("/: (run (shell x))"),
)


def test_a_step_is_at_work_until_it_is_saved() -> None:
    found = state(*BEGUN)
    (stage,) = found.active()
    assert stage.step
    assert (stage.step.text, stage.step.began) == ("/: (run (shell x))", 102.0)
    for what in (Saved("abc", 1.5), StageEnded("dev", 1.0), Done("abc", 2.0)):
        found.apply(Event(what, HERE, 110.0))
    assert (found.total, found.done, found.cached) == (4, 1, 0)
    assert found.made == [Made("dev", "/: (run (shell x))", 1.5)]
    assert (found.active(), found.id, found.seconds) == ([], "abc", 2.0)


def test_a_layer_that_is_there_is_done_and_cached() -> None:
    for what in (Hit("abc", Path("log")), InRemote("abc", "dir:/r")):
        found = state(*BEGUN, what)
        assert (found.done, found.cached, list(found.working())) == (1, 1, [])


def test_a_new_plan_of_a_stage_replaces_the_old_one() -> None:
    assert state(*BEGUN, Planned((PlannedStep(1, "", ""),))).total == 1


def test_phases_begin_advance_and_end() -> None:
    found = state(*BEGUN, PhaseStarted("sending", "c", 10), Progress("sending", "c", 4, 10))
    (step,) = found.working()
    (phase,) = step.phases
    assert (phase.name, phase.subject, phase.done, phase.total, phase.began) == ("sending", "c", 4, 10, 103.0)
    found.apply(Event(PhaseEnded("sending", "c", 1.0), HERE, 110.0))
    assert step.phases == []


def test_a_phase_outside_of_steps_belongs_to_the_build() -> None:
    found = state(PhaseStarted("making base", "debian-12"), place=Place())
    assert [phase.subject for phase in found.phases] == ["debian-12"]
    found.apply(Event(PhaseEnded("making base", "debian-12", 1.0), Place(), 110.0))
    assert found.phases == []


def test_the_network_is_open_while_a_command_that_may_use_it_runs() -> None:
    found = state(*BEGUN, PhaseStarted("running", "host"))
    assert found.network
    found.apply(Event(PhaseEnded("running", "host", 1.0), HERE, 110.0))
    assert not found.network
    assert not state(*BEGUN, PhaseStarted("running")).network


def test_a_step_knows_why_it_is_made_and_how_long_it_took() -> None:
    (step,) = state(*BEGUN, Missing(("the user changed",), "def", 4.5)).working()
    assert (step.why, step.seconds) == (("the user changed",), 4.5)


def test_ops_that_are_no_steps_are_not_counted() -> None:
    found = state(*BEGUN[:2])
    found.apply(Event(Started("/: (env A b)"), Place("dev", "", 1), 110.0))
    assert list(found.working()) == []


def test_a_huge_op_is_cut_off() -> None:
    (step,) = state(*BEGUN[:2], Started("x" * 1_000_000)).working()
    assert len(step.text) == LONGEST


def test_the_end_of_the_output_is_kept() -> None:
    (step,) = state(*BEGUN, Printed(b"one\ntw"), Printed(b"o\nthree")).working()
    assert step.output.last(2) == ["two", "three"]
    assert step.output.last(0) == []
    assert step.output.lines() == ["one", "two", "three"]


def test_of_a_flood_only_whole_lines_at_the_end_are_kept() -> None:
    output = Output()
    for number in range(100):
        output.add(b"%04d\n" % number * 10_000)
    lines = output.lines()
    assert len("\n".join(lines)) <= KEPT
    assert set(lines) == {"0098", "0099"}
    assert output.dropped == 5_000_000 - KEPT


def test_a_flood_without_a_newline_is_cut_off() -> None:
    output = Output()
    output.add(b"x" * 1_000_000)
    (line,) = output.lines()
    assert len(line) == KEPT
    assert output.dropped == 1_000_000 - KEPT
    assert output.last(5)[-1].startswith("xxx")
