"""Output of stages built in parallel: not mixed, and not kept in memory."""

from __future__ import annotations

import io
import os
import tracemalloc
from pathlib import Path

import pytest

from obuild.cli.text import Lines
from obuild.cli.turns import Turns
from obuild.errors import StoreError
from obuild.events import Hit, Note, Output, StageEnded, StageStarted, Teller
from obuild.store.layers import Store


class Shown:
    """A Turns whose output is kept."""

    def __init__(self, store: Store) -> None:
        self.out = io.BytesIO()
        self.turns = Turns(Lines(self.out, colour=False), store)

    def stage(self, path: str) -> Teller:
        return Teller(self.turns).of_stage(path)

    @property
    def lines(self) -> list[str]:
        return self.out.getvalue().decode().splitlines()


@pytest.fixture
def shown(store: Store) -> Shown:
    return Shown(store)


def test_one_stage_is_shown_live_and_the_next_after_it(shown: Shown) -> None:
    a, b = shown.stage("a"), shown.stage("b")
    with shown.turns:
        a(StageStarted("a"))
        b(StageStarted("b"))
        b.note("b1")
        a.note("a1")
        assert shown.lines == ['(build "a" …)', "a1"]
        a(StageEnded("a", 1.0))
        assert shown.lines[-2:] == ['(build "b" …)', "b1"]
        b.note("b2")
        assert shown.lines[-1] == "b2"
        b(StageEnded("b", 1.0))
    assert shown.lines == [
        '(build "a" …)',
        "a1",
        '--> finished "a"',
        '(build "b" …)',
        "b1",
        "b2",
        '--> finished "b"',
    ]


def test_a_stage_that_ends_early_is_shown_in_its_turn(shown: Shown) -> None:
    a, b, c = (shown.stage(path) for path in "abc")
    with shown.turns:
        for tell, name in ((a, "a"), (b, "b"), (c, "c")):
            tell(StageStarted(name))
        c(StageEnded("c", 1.0))
        b(StageEnded("b", 1.0, failed=True))
        a(StageEnded("a", 1.0))
    assert shown.lines == [
        '(build "a" …)',
        '--> finished "a"',
        '(build "b" …)',
        '(build "c" …)',
        '--> finished "c"',
    ]


def test_events_outside_started_stages_are_shown_at_once(shown: Shown) -> None:
    with shown.turns:
        shown.stage("")(Note("first"))
        shown.stage("a")(StageStarted("a"))
        shown.stage("")(Note("second"))
    assert shown.lines == ["first", '(build "a" …)', "second"]


def test_a_stage_starts_on_a_new_line(shown: Shown) -> None:
    with shown.turns:
        shown.stage("a")(StageStarted("a"))
        shown.stage("b")(StageStarted("b"))
        shown.stage("a")(Output(b"half"))
        shown.stage("a")(StageEnded("a", 1.0, failed=True))
    assert shown.lines == ['(build "a" …)', "half", '(build "b" …)']


def test_the_log_of_a_hit_is_copied_before_it_can_go_away(shown: Shown, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("old\n")
    with shown.turns:
        shown.stage("a")(StageStarted("a"))
        shown.stage("b")(StageStarted("b"))
        shown.stage("b")(Hit("abc", log))
        log.unlink()
        shown.stage("a")(StageEnded("a", 1.0))
    assert shown.lines[-2:] == ["old", '---> using "abc" from cache']


def test_waiting_output_is_in_an_unnamed_file_not_in_memory(store: Store) -> None:
    piece, count = b"x" * (1 << 16), 512
    with Path(os.devnull).open("wb") as out, Turns(Lines(out, colour=False), store) as turns:
        live, waiting = Teller(turns).of_stage("a"), Teller(turns).of_stage("b")
        live(StageStarted("a"))
        waiting(StageStarted("b"))
        tracemalloc.start()
        try:
            for _ in range(count):
                waiting(Output(piece))
            live(StageEnded("a", 1.0))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert list(store.cache_tmp.iterdir()) == []
    assert peak < 16 * len(piece)


def test_a_full_disk_is_a_store_error(shown: Shown, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with shown.turns, Path("/dev/full").open("r+b", buffering=0) as full:
        monkeypatch.setattr(store, "spool", lambda: full)
        shown.stage("a")(StageStarted("a"))
        with pytest.raises(StoreError, match="No space left on device"):
            shown.stage("b")(StageStarted("b"))
