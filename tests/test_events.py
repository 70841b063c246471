"""Phases: they begin and end whatever happens, and report progress only now and then."""

from __future__ import annotations

import pytest

from obuild import events
from obuild.events import PhaseEnded, PhaseStarted, Place, Progress, StageEnded, StageStarted
from tests.support.fakes import Heard


def test_a_phase_is_told_at_its_place_when_it_begins_and_when_it_ends() -> None:
    heard = Heard()
    with heard.tell.of_stage("dev").of_op(3, "abc").phase("booting"):
        assert heard.of(PhaseEnded) == []
    assert heard.of(PhaseStarted) == [PhaseStarted("booting")]
    assert [(ended.phase, ended.subject) for ended in heard.of(PhaseEnded)] == [("booting", "")]
    assert {event.place for event in heard.events} == {Place("dev", "abc", 3)}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_fails_has_ended(error: type[BaseException]) -> None:
    heard = Heard()
    with pytest.raises(error), heard.tell.stage("dev"), heard.tell.phase("sending", "/d", 10):
        raise error
    assert [type(event.what) for event in heard.events] == [StageStarted, PhaseStarted, PhaseEnded, StageEnded]
    assert heard.of(StageEnded)[0].failed


@pytest.mark.parametrize(("period", "told"), [(0.0, [1, 3, 6]), (3600.0, [6])])
def test_progress_is_told_once_in_a_while_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch, period: float, told: list[int]
) -> None:
    monkeypatch.setattr(events, "PROGRESS_PERIOD", period)
    heard = Heard()
    with heard.tell.phase("sending", "/d", 6) as phase:
        for count in (1, 2, 3):
            phase.advance(count)
    assert heard.of(Progress) == [Progress("sending", "/d", done, 6) for done in told]


def test_a_phase_may_learn_its_total(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "PROGRESS_PERIOD", 0.0)
    heard = Heard()
    with heard.tell.phase("preparing") as phase:
        phase.reach(2, 6)
        phase.reach(6, 6)
    assert heard.of(Progress) == [Progress("preparing", "", done, 6) for done in (2, 6)]


def test_a_phase_that_moves_nothing_tells_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "PROGRESS_PERIOD", 0.0)
    heard = Heard()
    with heard.tell.phase("running"):
        pass
    assert heard.of(Progress) == []
