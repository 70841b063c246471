"""What scrolls up above the live view, and stays."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path

import pytest

from obuild.cli.live.drawer import Drawer
from obuild.cli.live.look import Look
from obuild.cli.live.output import KEPT
from obuild.cli.live.view import View
from obuild.errors import StepFailed
from obuild.events import (
    Done,
    Event,
    Hit,
    InRemote,
    Missing,
    Note,
    Output,
    Place,
    Planned,
    PlannedStep,
    Saved,
    StageEnded,
    StageStarted,
    Started,
    What,
)

PLAIN = Look(colour=False, unicode=True)


class Shown:
    """A view on something that is no terminal; nothing is drawn without a phase."""

    def __init__(self, look: Look = PLAIN) -> None:
        self.out = io.BytesIO()
        self.view = View(self.out, look)

    def say(self, *said: What, stage: str = "", step: str = "abc") -> None:
        for what in said:
            self.view(Event(what, Place(stage, step, 2), 100.0))

    @property
    def lines(self) -> list[str]:
        return self.out.getvalue().decode().splitlines()


@pytest.fixture
def shown() -> Iterator[Shown]:
    found = Shown()
    with found.view:
        yield found


def begun(count: int, name: str = "") -> tuple[What, ...]:
    return Planned(tuple(PlannedStep(op, "", "") for op in range(count))), StageStarted(name)


def test_a_fully_cached_build_is_its_summary(shown: Shown, tmp_path: Path) -> None:
    shown.view.tags = ("web",)
    shown.say(*begun(2))
    for _ in range(2):
        shown.say(Started("op"), Hit("abc", tmp_path / "log"))
    shown.say(StageEnded("", 0.1), Done("abc", 0.1))
    assert shown.lines == ["2 steps in 0.1 s: all from the cache", "tags:    web", 'Got: "abc"']


def test_cached_steps_are_folded_before_one_that_is_made(shown: Shown, tmp_path: Path) -> None:
    shown.say(*begun(4, "dev"), stage="dev")
    for what in (Hit("abc", tmp_path / "log"), InRemote("abc", "dir:/r")):
        shown.say(Started("op"), what, stage="dev")
    shown.say(Started("/: (run (shell make))"), Missing(), Output(b"a\rb\nc"), Saved("abc", 75.0), stage="dev")
    shown.say(Started("op"), Hit("abc", tmp_path / "log"), StageEnded("dev", 80.0), stage="dev")
    assert shown.lines == [
        "---> dev: 2 steps from the cache",
        "dev: /: (run (shell make))  1:15",
        "b",
        "c",
        "---> dev: 1 step from the cache",
        '--> finished "dev" in 1:20',
    ]


def test_the_output_of_a_step_that_another_build_makes_is_shown(shown: Shown, tmp_path: Path) -> None:
    shown.say(*begun(1), Started("op"), Output(b"theirs\n"), Hit("abc", tmp_path / "log", told=True))
    assert shown.lines == ["op  made by another build", "theirs"]


def test_of_long_output_the_end_is_shown_and_where_the_rest_is(shown: Shown) -> None:
    shown.say(*begun(1), Started("op"), Output(b"x" * 99 + b"\n"), Output(b"y\n" * KEPT), Saved("abc", 1.0))
    assert shown.lines[:3] == ["op  1.0 s", "(the first 64.1 KiB: obuild logs abc)", "y"]
    assert len(shown.lines) == 2 + KEPT // 2 - 1


def test_notes_control_no_terminal(shown: Shown) -> None:
    shown.say(Note("by the \x1b[31mway"))
    assert shown.lines == ["by the way"]


def test_a_failed_step_shows_the_end_of_its_output() -> None:
    shown = Shown(Look(colour=True, unicode=True))
    error = StepFailed("no")
    error.place = Place("", "abc", 2)
    shown.say(*begun(1), Started("op"), Output(b"".join(b"%d\n" % line for line in range(30))))
    with pytest.raises(StepFailed), shown.view:
        raise error
    assert shown.lines == ["\x1b[31mop  failed\x1b[0m", *(str(line) for line in range(10, 30))]


def test_an_interrupted_build_shows_no_failure() -> None:
    shown = Shown()
    shown.say(*begun(1), Started("op"), Output(b"text\n"))
    with pytest.raises(KeyboardInterrupt), shown.view:
        raise KeyboardInterrupt
    assert shown.lines == []


def test_what_is_written_to_stderr_goes_above_in_whole_lines() -> None:
    with redirect_stderr(io.StringIO()) as real:
        drawer = Drawer(io.BytesIO(), lambda columns, lines: (), PLAIN, delay=3600.0)
        drawer.start()
        try:
            print("one\ntw", end="", file=sys.stderr)
            assert real.getvalue() == "one\n"
            print("o", file=sys.stderr)
            print("rest", end="", file=sys.stderr)
            assert real.getvalue() == "one\ntwo\n"
        finally:
            drawer.close()
        assert sys.stderr is real
        assert real.getvalue() == "one\ntwo\nrest"


class Gone(io.BytesIO):
    """A terminal that has gone away."""

    def write(self, data: object) -> int:
        raise OSError(5, "Input/output error")


def test_nothing_more_is_written_to_a_terminal_that_has_gone() -> None:
    drawer = Drawer(Gone(), lambda columns, lines: (), PLAIN, delay=0.0)
    drawer.start()
    drawer.above(b"text\n")
    drawer.close()
    assert drawer.gone
