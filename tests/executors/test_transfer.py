"""Transfers in and out of a guest report their bytes. tests/guests/test_flow.py tests the guests' side."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from obuild import events
from obuild.events import PhaseEnded, PhaseStarted, Progress
from obuild.executors import transfer
from obuild.guests.all import GUESTS
from obuild.plan import tree
from obuild.plan.archive import Sink
from obuild.plan.keys import LayerId
from obuild.plan.steps import Command, Extract, Graft, Transfer
from obuild.spec import Cache, UnixUser, WindowsUser
from obuild.store.layers import Store
from tests.support.fakes import Heard

GUEST = GUESTS["linux"]
ROOT = UnixUser(0, 0)
SIZE = 3 << 18


class FakeLine:
    """Accepts any stream, and answers each fetch with a fixed number of bytes."""

    def run(self, command: str, script: Callable[[str], bytes], output: Callable[[bytes], object]) -> int:
        return 0

    def check(self, command: str, script: bytes, *, what: str) -> None: ...

    def stream(self, command: str, send: Callable[[Any], None], *, what: str) -> None:
        send(io.BytesIO())

    def fetch(self, command: str, script: bytes, out: Sink, *, what: str) -> None:
        for _ in range(3):
            out.write(bytes(SIZE // 3))

    def put(self, source: Path, dest: str) -> None: ...

    def get(self, source: str, dest: Path) -> None:
        dest.write_bytes(b"")


@pytest.fixture(autouse=True)
def told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "PROGRESS_PERIOD", 0.0)


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(bytes(SIZE))
    return path


def check(heard: Heard, phase: PhaseStarted) -> None:
    """Check that one phase was reported, with all its bytes."""
    assert heard.of(PhaseStarted) == [phase]
    told = heard.of(Progress)
    assert {(each.phase, each.subject, each.total) for each in told} == {(phase.phase, phase.subject, phase.total)}
    assert [each.done for each in told] == sorted({each.done for each in told})
    assert told[-1].done == SIZE
    assert [(each.phase, each.subject) for each in heard.of(PhaseEnded)] == [(phase.phase, phase.subject)]


def test_a_copy_reports_the_bytes_of_its_files(heard: Heard, file: Path) -> None:
    action = Transfer(tree.walk(file.parent, ["file"]), "/dest", ROOT)
    transfer.send_tree(FakeLine(), GUEST, "root", action, heard.tell)
    check(heard, PhaseStarted("sending", "/dest", SIZE))


def test_a_copy_from_a_build_reports_fetching_and_sending(heard: Heard, file: Path) -> None:
    extract = Extract("dev", ("/out",), (), None, ROOT)
    transfer.take_tree(FakeLine(), GUEST, "root", extract, file.with_name("taken"), heard.tell)
    check(heard, PhaseStarted("fetching", "dev"))
    heard.clear()
    graft = Graft(extract, LayerId("abc"), (), "/dest")
    transfer.send_archive(FakeLine(), GUEST, "root", graft, file, heard.tell)
    check(heard, PhaseStarted("sending", "/dest", SIZE))


@pytest.mark.parametrize("os", ["linux", "windows"])
def test_a_cache_reports_sending_and_fetching(heard: Heard, store: Store, os: str) -> None:
    user = WindowsUser("ContainerAdministrator") if os == "windows" else ROOT
    command = Command(("true",), "/", (), user, network=False, caches=(Cache("c", "/c"),))
    with store.caches.borrow("c") as copy:
        transfer.send_caches(FakeLine(), GUESTS[os], "root", command, [copy.path], heard.tell)
        assert heard.of(PhaseStarted) == [PhaseStarted("sending", "c")], "there is nothing in it yet"
        heard.clear()
        copy.path.write_bytes(bytes(SIZE))
        transfer.send_caches(FakeLine(), GUESTS[os], "root", command, [copy.path], heard.tell)
        sent = PhaseStarted("sending", "c", SIZE)
        assert heard.of(PhaseStarted) == [sent]
        if os == "linux":  # scp does not report progress
            check(heard, sent)
        heard.clear()
        transfer.fetch_caches(FakeLine(), GUESTS[os], "root", command, [copy.path], heard.tell)
        if os == "linux":
            check(heard, PhaseStarted("fetching", "c"))
        assert heard.of(PhaseStarted) == [PhaseStarted("fetching", "c")]


def test_the_size_of_a_tree_is_that_of_its_files(file: Path) -> None:
    (file.parent / "link").symlink_to("file")
    (file.parent / "folder").mkdir()
    found = tree.walk(file.parent, ["."])
    assert found.size == SIZE
    assert found._replace(entries=()).size == 0
