"""The row that shows how far something is."""

from __future__ import annotations

import shlex
import sys
from io import StringIO
from pathlib import Path

import pytest

from obuild.cli.bar import Bar
from tests.support.tmux import terminal

ROOT = Path(__file__).parents[2]


class Clock:
    """A clock that the test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def row(bar: Bar, columns: int = 80) -> tuple[str, str]:
    (found,) = bar.rows(columns, 24)
    return found.left, found.right


def test_without_bytes_it_shows_the_time(clock: Clock) -> None:
    bar = Bar("making debian-12", StringIO(), clock=clock)
    clock.now += 42
    assert row(bar) == ("making debian-12", "0:42")


def test_bytes_have_a_bar_a_rate_and_the_time_left(clock: Clock) -> None:
    bar = Bar("fetching", StringIO(), clock=clock)
    bar(0, 40 << 20)
    clock.now += 4
    bar(10 << 20, 40 << 20)
    assert row(bar) == (
        "fetching [#####---------------]  25%",
        "10.0 MiB of 40.0 MiB, 2.5 MiB/s, 0:12 left",
    )
    assert row(bar, columns=40)[0] == "fetching"
    bar(50 << 20, 40 << 20)
    assert row(bar)[0] == "fetching [####################] 100%"


def test_the_rate_leaves_out_what_was_there_already(clock: Clock) -> None:
    bar = Bar("fetching", StringIO(), clock=clock)
    clock.now += 100
    bar(10 << 20, 40 << 20)
    clock.now += 10
    bar(20 << 20, 40 << 20)
    assert row(bar)[1] == "20.0 MiB of 40.0 MiB, 1.0 MiB/s, 0:20 left"


def test_something_else_begins_when_bytes_start_again(clock: Clock) -> None:
    bar = Bar("fetching", StringIO(), clock=clock)
    bar(30, 40)
    clock.now += 100
    bar(0, 40)
    clock.now += 10
    bar(20, 40)
    assert row(bar)[1] == "20 B of 40 B, 2 B/s, 0:10 left"


def test_nothing_is_drawn_unless_out_is_a_terminal() -> None:
    out = StringIO()
    said: list[str] = []
    with Bar("working", out) as bar:
        bar(1, 2)
        bar.under(said.append)("done")
    assert out.getvalue() == ""
    assert said == ["done"]


def test_on_a_terminal_the_row_is_below_what_is_printed_and_goes_at_the_end(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"""import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from obuild.cli import bar, console
console.log_commands()
bar.DELAY = 0
with bar.Bar("working") as row:
    row(1, 4)
    row.under(console.say)("first")
    import logging; logging.getLogger("obuild").info("logged")
    while not os.path.exists("go"): time.sleep(0.02)
    row.under(console.say)("last")
"""
    )
    with terminal(tmp_path, 80, 10, {}) as at:
        at.type(shlex.join([sys.executable, "script.py"]))
        seen = at.expect("working [#####-----", "25%", "first", "logged").splitlines()
        assert seen[1:3] == ["first", "obuild: [INFO] logged"]
        (tmp_path / "go").touch()
        seen = at.expect("last", gone=["working ["]).splitlines()
        assert seen[1:4] == ["first", "obuild: [INFO] logged", "last"]
