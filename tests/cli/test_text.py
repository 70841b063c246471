"""Output for people: events as lines, errors with a place and a hint."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest

from obuild.cli import text as ui
from obuild.errors import ObuildError, SpecError, UsageError
from obuild.events import (
    Done,
    Event,
    Hit,
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


def lines(*said: What, colour: bool = False) -> str:
    out = io.BytesIO()
    show = ui.Lines(out, colour=colour)
    for what in said:
        show(Event(what, Place(), 0.0))
    return out.getvalue().decode("utf-8", "surrogateescape")


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (Started("/: (run (shell x))"), "/: (run (shell x))\n"),
        (StageStarted("dev"), '(build "dev" …)\n'),
        (StageStarted(""), ""),
        (Planned((PlannedStep(1, "abc", "(from tiny)"),)), ""),
        (PhaseStarted("booting"), ""),
        (Progress("sending", "/d", 1, 2), ""),
        (PhaseEnded("booting", "", 1.5), ""),
        (Output(b"text\n"), "text\n"),
        (Output(b""), ""),
        (Saved("abc", 1.5), '---> saved as "abc"\n'),
        (Note("by the way"), "by the way\n"),
        (StageEnded("dev", 1.5), '--> finished "dev"\n'),
        (StageEnded("", 1.5), ""),
        (StageEnded("dev", 1.5, failed=True), ""),
        (Done("abc", 1.5), 'Got: "abc"\n'),
        (Started("bytes \udcff"), "bytes \udcff\n"),
    ],
)
def test_events_are_printed_as_obuilder_prints_them(event: What, line: str) -> None:
    assert lines(event) == line


@pytest.mark.parametrize("log", [b"", b"log\n", b"long\n" * ui._CHUNK])
def test_a_hit_prints_its_log_unless_it_was_already_printed(tmp_path: Path, log: bytes) -> None:
    (tmp_path / "log").write_bytes(log)
    end = '---> using "abc" from cache\n'
    assert lines(Hit("abc", tmp_path / "log")) == log.decode() + end
    assert lines(Hit("abc", tmp_path / "log", told=True)) == end


def test_a_newline_is_added_after_output_without_one() -> None:
    assert lines(Output(b"a"), Output(b"b"), Saved("x", 1.5)) == 'ab\n---> saved as "x"\n'
    assert lines(Output(b"a"), Output(b"\n"), Saved("x", 1.5)) == 'a\n---> saved as "x"\n'


def test_output_is_written_unchanged_and_at_once() -> None:
    out = io.BytesIO()
    ui.Lines(out, colour=True)(Event(Output(b"\x00\xff\x1b[1m"), Place(), 0.0))
    assert out.getvalue() == b"\x00\xff\x1b[1m"


def test_only_our_own_lines_are_coloured() -> None:
    shown = lines(Started("op"), Output(b"text\n"), Saved("x", 1.5), Note("note"), colour=True).splitlines()
    assert [line.startswith("\x1b[") and line.endswith("\x1b[0m") for line in shown] == [True, False, True, False]


@pytest.mark.parametrize(
    ("error", "what", "file", "text"),
    [
        (ObuildError("no"), "", "", "obuild: no\n"),
        (ObuildError("no", hint="do that"), "", "", "obuild: no\nhint: do that\n"),
        (ObuildError("no"), "Build step failed:", "x.spec", "obuild: Build step failed: no\n"),
        (SpecError("no", line=2, column=3), "", "x.spec", "obuild: x.spec:2:3: no\n"),
        (SpecError("no"), "", "x.spec", "obuild: x.spec: no\n"),
        (UsageError("no \udcff"), "", "x.spec", "obuild: no \udcff\n"),
    ],
)
def test_an_error_names_the_place_the_problem_and_the_remedy(
    capfdbinary: pytest.CaptureFixture[bytes], error: ObuildError, what: str, file: str, text: str
) -> None:
    ui.report(error, what=what, file=file)
    captured = capfdbinary.readouterr()
    assert captured.err.decode("utf-8", "surrogateescape") == text
    assert captured.out == b""


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (3 << 19, "1.5 MiB"),
        (1 << 30, "1.0 GiB"),
        (5 << 40, "5.0 TiB"),
        (5000 << 40, "5000.0 TiB"),
    ],
)
def test_sizes_have_binary_units(count: int, text: str) -> None:
    assert ui.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "words"), [(-5, "0 s"), (59, "59 s"), (60, "1 min"), (7200, "2 h"), (86400 * 3, "3 d")]
)
def test_ages_are_one_short_word(monkeypatch: pytest.MonkeyPatch, seconds: float, words: str) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_000_000.0)
    assert ui.ago(1_000_000.0 - seconds) == words
