"""What is drawn of a build, on terminals of many sizes."""

from __future__ import annotations

import pytest

from obuild.cli.live.look import Look, can_draw, look
from obuild.cli.live.paint import STYLES, drawn, texts
from obuild.cli.live.rows import Facts, Row, amount, rows, summary
from obuild.cli.live.state import Made, State
from obuild.events import (
    Event,
    Missing,
    Output,
    PhaseStarted,
    Place,
    Planned,
    PlannedStep,
    Progress,
    StageStarted,
    Started,
)

SIZES = [(40, 8), (80, 24), (200, 60), (10, 2), (1, 1)]
PLAIN = Look(colour=False, unicode=True)
NOTHING = Facts()


def busy(*stages: str) -> State:
    """A build whose stages each run a command, the first since the time 100."""
    state = State()
    for number, name in enumerate(stages):
        here = Place(name, f"id-{name}", 3)
        for what in (
            Planned(tuple(PlannedStep(op, "", "") for op in range(5))),
            StageStarted(name),
            Started(f'/: (run (shell "make {name}"))'),
            Missing(("the command changed: a → b",), "near", 70.0),
            PhaseStarted("running", "host"),
            Output(b"".join(b"line %d of 20\n" % (line + 1) for line in range(20))),
        ):
            state.apply(Event(what, here, 100.0 + number))
    return state


def shown(state: State, columns: int, lines: int, facts: Facts = NOTHING) -> list[str]:
    found = rows(state, facts, 142.0, columns, lines)
    return [text.plain.rstrip() for text in texts(found, columns, PLAIN)]


def test_a_step_at_work_has_its_phase_time_last_time_reason_and_output() -> None:
    found = shown(busy(""), 100, 24, Facts(3 << 30, 50 << 30))
    assert found[0].split("  ")[0] == '1/5 /: (run (shell "make "))'
    assert found[0].split("  ")[-1].strip() == "running 0:42 (last time 1:10)"
    assert len(found[0]) == 99
    assert found[1] == "  the command changed: a → b"
    assert found[2:-1] == [f"  | line {number} of 20" for number in range(11, 21)]
    assert found[-1] == "0/5 steps, 0:42, network open, layers 3.0 GiB, 50.0 GiB free"


def test_stages_side_by_side_are_all_there() -> None:
    found = shown(busy("a", "b", "c"), 80, 24)
    assert [line.split()[0] for line in found if "running" in line] == ["a", "b", "c"]
    assert sum(line.startswith("  |") for line in found) >= 12


def test_a_low_terminal_has_the_steps_before_their_output() -> None:
    found = shown(busy("a", "b", "c"), 40, 8)
    assert len(found) == 7
    assert [line.split()[0] for line in found if "running" in line] == ["a", "b", "c"]


def test_more_steps_than_rows_are_counted() -> None:
    found = shown(busy(*"abcdefghij"), 40, 8)
    assert found[5] == "and 5 more steps at work"
    assert "running" in found[4]


@pytest.mark.parametrize(("columns", "lines"), SIZES)
@pytest.mark.parametrize("state", [State(), busy(""), busy(*"abcdefghij"), busy("漢字" * 30)])
def test_the_rows_fit(state: State, columns: int, lines: int) -> None:
    found = rows(state, Facts(1 << 40, 1 << 40), 1e6, columns, lines)
    assert 1 <= len(found) <= max(1, lines - 1)
    for row in drawn(found, columns, Look(colour=True, unicode=True)):
        assert row.width <= max(1, columns - 1)
        assert "\n" not in row.codes


def test_bytes_have_a_rate_and_the_time_left() -> None:
    state = busy("")
    here = Place("", "id-", 3)
    state.apply(Event(PhaseStarted("sending", "c", 40 << 20), here, 130.0))
    state.apply(Event(Progress("sending", "c", 12 << 20, 40 << 20), here, 134.0))
    assert "sending c 12.0 MiB of 40.0 MiB, 1.0 MiB/s, 0:28 left" in shown(state, 120, 24)[0]


@pytest.mark.parametrize(
    ("done", "total", "spent", "text"),
    [
        (0, 0, 4.2, "4.2 s"),
        (0, 0, 3725.0, "1:02:05"),
        (1024, 0, 2.0, "1.0 KiB, 512 B/s, 2.0 s"),
        (0, 2048, 2.0, "0 B of 2.0 KiB, 2.0 s"),
        (2048, 2048, 2.0, "2.0 KiB of 2.0 KiB, 1.0 KiB/s, 2.0 s"),
    ],
)
def test_an_amount_says_what_is_known(done: int, total: int, spent: float, text: str) -> None:
    assert amount(done, total, spent) == text


def test_a_base_image_that_is_made_has_a_row() -> None:
    state = State()
    state.apply(Event(PhaseStarted("making base", "debian-12"), Place(), 100.0))
    assert shown(state, 60, 24)[0] == "making base debian-12" + "0:42".rjust(38)


def test_without_utf8_everything_is_ascii() -> None:
    found = drawn(rows(busy("é"), Facts(), 142.0, 30, 24), 30, Look(colour=False, unicode=False))
    assert all(row.codes.isascii() for row in found)


def test_colours_are_codes_of_their_own() -> None:
    row = [Row("left", "right", "step")]
    assert "\x1b[36m" in drawn(row, 40, Look(colour=True, unicode=True))[0].codes
    assert drawn(row, 40, PLAIN)[0].codes == "left" + "right".rjust(35)
    assert {each.style for each in rows(busy("a"), Facts(), 142.0, 80, 24)} <= STYLES.keys()


def test_the_summary_names_the_slowest_three_and_the_tags() -> None:
    state = busy("")
    state.seconds = 99.0
    state.made = [Made("", f"op {seconds}", seconds) for seconds in (1.0, 40.0, 3.0, 20.0)]
    state.stages[""].cached, state.stages[""].done = 1, 5
    assert list(summary(state, ("web", "db"))) == [
        "5 steps in 1:39: 1 from the cache, 4 made",
        "slowest:    0:40  op 40.0",
        "            0:20  op 20.0",
        "           3.0 s  op 3.0",
        "tags:    web, db",
    ]


@pytest.mark.parametrize(
    ("env", "unicode"),
    [
        ({"LANG": "en_US.UTF-8"}, True),
        ({"LANG": "de_DE.utf8"}, True),
        ({"LANG": "C.UTF-8", "LC_CTYPE": "C.UTF-8"}, True),
        ({"LANG": "C", "LC_CTYPE": "C.UTF-8"}, False),
        ({"LC_CTYPE": "C.UTF-8"}, False),
        ({"LC_ALL": "C", "LANG": "en_US.UTF-8"}, False),
        ({"LC_ALL": "", "LC_CTYPE": "en_US.UTF-8"}, True),
        ({}, False),
    ],
)
def test_the_locale_says_whether_there_is_utf8(env: dict[str, str], unicode: bool) -> None:
    assert look(env).unicode == unicode


def test_the_environment_says_what_the_terminal_can() -> None:
    assert look({"NO_COLOR": ""}).colour is False
    assert look({}).colour
    assert [can_draw({"TERM": term}) for term in ("xterm", "dumb", "")] == [True, False, False]
