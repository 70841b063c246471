"""Events as JSON and back: nothing is lost, and what is no event is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from obuild.builder import records
from obuild.events import (
    Done,
    Event,
    Hit,
    InRemote,
    Missing,
    Note,
    Output,
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

EVENTS: tuple[What, ...] = (
    StageStarted("dev"),
    Planned((PlannedStep(1, "abc", "(from \udcff)"), PlannedStep(2, "", "(copy)", "dev"))),
    Started("/: (run)"),
    Hit("abc", Path("/s/\udcff/log"), told=True),
    Missing(("file f changed", "x"), "abc", 1.5),
    Missing(),
    InRemote("abc", "dir:/r"),
    Output(b"\xff\0"),
    PhaseStarted("sending", "cache", 5),
    Progress("sending", "cache", 1, 5),
    PhaseEnded("sending", "cache", 0.5),
    Saved("abc", 1.5),
    Note("é"),
    StageEnded("dev", 1.5, failed=True),
    Done("abc", 2.5),
)


def test_these_are_all_events() -> None:
    assert {type(what) for what in EVENTS} == set(get_args(What))


@pytest.mark.parametrize("what", EVENTS, ids=lambda what: type(what).__name__)
def test_an_event_comes_back_from_its_record(what: What) -> None:
    event = Event(what, Place("dev\udcff", "abc", 3), 1.5)
    assert records.event(json.loads(json.dumps(records.record(event)))) == event


def test_a_record_that_is_no_event_is_none() -> None:
    assert records.event({"event": "summary"}) is None
    assert records.event({}) is None


@pytest.mark.parametrize(
    "change",
    [{"time": None}, {"time": True}, {"op": "3"}, {"seconds": "1"}, {"id": 5}, {"id": None}, {"stage": []}],
    ids=str,
)
def test_a_record_with_a_wrong_field_is_refused(change: dict[str, object]) -> None:
    record = records.record(Event(Saved("abc", 1.5), Place(), 1.5))
    with pytest.raises(ValueError, match=r"number|no id|no stage"):
        records.event({**record, **change})
