"""Lines for the logs of CI jobs: when, where, what folds, and that quiet steps are not silent."""

from __future__ import annotations

import io
import re
import threading
from pathlib import Path

import pytest

from obuild.cli import folding, plain
from obuild.cli.plain import Plain
from obuild.cli.turns import Turns
from obuild.events import (
    Event,
    Hit,
    Output,
    PhaseStarted,
    Place,
    Saved,
    StageEnded,
    StageStarted,
    Started,
    What,
)
from obuild.store.layers import Store


class Job:
    """The log of a job, whose build began at the time 1000."""

    def __init__(self, fold: type[folding.Github] | type[folding.Gitlab] | None = None) -> None:
        self.out = io.BytesIO()
        self.lines = Plain(self.out, fold=fold)

    def say(self, time: float, what: What, stage: str = "") -> None:
        self.lines(Event(what, Place(stage, "abc", 2), time))

    @property
    def text(self) -> str:
        return self.out.getvalue().decode("utf-8", "surrogateescape")


def test_each_line_has_the_time_since_the_start_and_the_stage() -> None:
    job = Job()
    job.say(1000.0, StageStarted("dev"), "dev")
    job.say(1000.5, Started("/: (run\n (shell x))"), "dev")
    job.say(1012.3, Output(b"a\nb\nc"), "dev")
    job.say(1012.3, Output(b"from here\n"), "")
    job.say(1012.4, Output(b"d\n"), "dev")
    job.say(4600.0, Saved("abc", 1.0), "dev")
    assert job.text == (
        '[    0.0] dev: (build "dev" …)\n'
        "[    0.5] dev: /: (run\n"
        "[    0.5] dev:  (shell x))\n"
        "[   12.3] dev: a\n"
        "[   12.3] dev: b\n"
        "[   12.3] from here\n"
        "[   12.4] dev: cd\n"
        '[ 3600.0] dev: ---> saved as "abc"\n'
    )


def test_the_end_of_a_line_is_written_before_the_next_thing_and_at_the_end() -> None:
    job = Job()
    with job.lines:
        job.say(1000.0, Output(b"half"))
        job.say(1001.0, Saved("abc", 1.0))
        job.say(1001.0, Output(b"last"))
    assert [line[10:] for line in job.text.splitlines()] == ["half", '---> saved as "abc"', "last"]


def test_of_a_line_that_is_written_again_and_again_only_the_end_is_shown() -> None:
    job = Job()
    job.say(1000.0, Output(b"10%\r20"))
    job.say(1000.0, Output(b"%\r30%\r\nnext\r\n"))
    assert [line[10:] for line in job.text.splitlines()] == ["30%", "next"]


def test_a_line_without_an_end_is_written_in_pieces() -> None:
    job = Job()
    for _ in range(64):
        job.say(1000.0, Output(b"x" * 16384))
    assert job.text.count("\n") >= 10
    assert len(job.lines._ends.get("", b"")) <= plain._LONGEST


def test_bytes_stay_as_they_are() -> None:
    job = Job()
    job.say(1000.0, Output(b"\xff\x1b[1mbold\n"))
    assert job.out.getvalue() == b"[    0.0] \xff\x1b[1mbold\n"


def test_github_s_groups_hold_the_output_and_no_commands_of_the_step(tmp_path: Path) -> None:
    job = Job(folding.Github)
    (tmp_path / "log").write_bytes(b"old\n")
    job.say(1000.0, Started("(from a)"))
    job.say(1000.0, Hit("abc", tmp_path / "log"))
    job.say(1001.0, Started("op"))
    job.say(1001.0, Output(b"::add-mask::a\n\r::warning::b\n"))
    job.say(1002.0, Saved("abc", 1.0))
    lines = job.text.splitlines()
    words = re.findall(r"^::stop-commands::([0-9a-f]{32})$", job.text, re.MULTILINE)
    assert len(set(words)) == 2
    assert lines == [
        "[    0.0] (from a)",
        "::group::[    0.0] output",
        f"::stop-commands::{words[0]}",
        "[    0.0] old",
        f"::{words[0]}::",
        "::endgroup::",
        '[    0.0] ---> using "abc" from cache',
        "[    1.0] op",
        "::group::[    1.0] output",
        f"::stop-commands::{words[1]}",
        "[    1.0] ::add-mask::a",
        "[    1.0] ::warning::b",
        f"::{words[1]}::",
        "::endgroup::",
        '[    2.0] ---> saved as "abc"',
    ]


def test_gitlab_s_sections_begin_and_end_by_name() -> None:
    job = Job(folding.Gitlab)
    with job.lines:
        job.say(1000.0, Output(b"a\n"))
        job.say(1001.0, Saved("abc", 1.0))
        job.say(1002.0, Output(b"b\n"), "dev")
    begun = re.findall(
        r"^\x1b\[0Ksection_start:(\d+):(\w+)\[collapsed=true\]\r\x1b\[0K(.*)$", job.text, re.MULTILINE
    )
    ended = re.findall(r"^\x1b\[0Ksection_end:(\d+):(\w+)\r\x1b\[0K$", job.text, re.MULTILINE)
    assert [(when, title) for when, _, title in begun] == [
        ("1000", "[    0.0] output"),
        ("1002", "[    2.0] dev: output"),
    ]
    assert [name for _, name, _ in begun] == [name for _, name in ended]
    assert [when for when, _ in ended] == ["1001", "1002"]


@pytest.mark.parametrize(
    ("env", "fold"),
    [
        ({"GITHUB_ACTIONS": "true"}, folding.Github),
        ({"GITLAB_CI": "true"}, folding.Gitlab),
        ({"CI": "true"}, None),
        ({}, None),
    ],
)
def test_the_service_is_known_by_its_variable(env: dict[str, str], fold: type[object] | None) -> None:
    assert folding.of(env) is fold


def test_a_line_without_an_end_is_in_a_part_too() -> None:
    job = Job(folding.Github)
    job.say(1000.0, Output(b"##[add-mask]a"))
    job.say(1001.0, Saved("abc", 1.0))
    lines = job.text.splitlines()
    assert lines[0] == "::group::[    1.0] output"
    assert lines[2] == "[    1.0] ##[add-mask]a"
    assert lines[4] == "::endgroup::"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("it said:\n::add-mask::a", "it said:\n: :add-mask::a"),
        ("\t ::error::b", "\t : :error::b"),
        ("it said ##[add-mask]a", "it said ## [add-mask]a"),
        ("a::b", "a::b"),
    ],
)
def test_an_error_that_quotes_a_guest_is_no_command_to_github(said: str, shown: str) -> None:
    assert folding.harmless(said, {"GITHUB_ACTIONS": "true"}) == shown
    assert folding.harmless(said, {}) == said


def test_parts_of_stages_side_by_side_do_not_overlap(store: Store) -> None:
    job = Job(folding.Github)
    with Turns(job.lines, store) as turns:
        for time, what, stage in (
            (1000.0, StageStarted("a"), "a"),
            (1001.0, StageStarted("b"), "b"),
            (1002.0, Output(b"from b\n"), "b"),
            (1003.0, Output(b"from a\n"), "a"),
            (1004.0, StageEnded("b", 3.0), "b"),
            (1005.0, StageEnded("a", 5.0), "a"),
        ):
            turns(Event(what, Place(stage), time))
    assert re.sub(r"[0-9a-f]{32}", "WORD", job.text).splitlines() == [
        '[    0.0] a: (build "a" …)',
        "::group::[    3.0] a: output",
        "::stop-commands::WORD",
        "[    3.0] a: from a",
        "::WORD::",
        "::endgroup::",
        '[    5.0] a: --> finished "a"',
        '[    1.0] b: (build "b" …)',
        "::group::[    2.0] b: output",
        "::stop-commands::WORD",
        "[    2.0] b: from b",
        "::WORD::",
        "::endgroup::",
        '[    4.0] b: --> finished "b"',
    ]


def test_a_quiet_step_is_reported_again_and_again() -> None:
    job = Job()
    with job.lines:
        job.say(1000.0, StageStarted("dev"), "dev")
        job.say(1000.0, Started("op"), "dev")
        job.say(1000.0, PhaseStarted("booting"), "dev")
        for now in (1029.0, 1030.0, 1031.0, 1060.0):
            job.lines.report_quiet(now)
        job.say(1061.0, PhaseStarted("running"), "dev")
        job.say(1080.0, Output(b"half a line"), "dev")
        job.lines.report_quiet(1100.0)
        job.say(1101.0, Saved("abc", 1.0), "dev")
        job.lines.report_quiet(2000.0)
    assert job.text.splitlines()[2:] == [
        "[   30.0] dev: still booting after 0:30",
        "[   60.0] dev: still booting after 1:00",
        "[  100.0] dev: half a line",
        "[  100.0] dev: still running after 1:40",
        '[  101.0] dev: ---> saved as "abc"',
    ]


def test_a_thread_watches_while_something_is_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = threading.Event()
    monkeypatch.setattr(plain, "_PERIOD", 0.001)
    monkeypatch.setattr(Plain, "report_quiet", lambda self, now: looked.set())
    job = Job()
    before = threading.active_count()
    with job.lines:
        job.say(1000.0, Started("op"))
        assert threading.active_count() == before
        job.say(1000.0, PhaseStarted("booting"))
        assert looked.wait(60)
