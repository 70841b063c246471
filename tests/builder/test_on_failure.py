"""What `--on-failure` does after a step has failed."""

from __future__ import annotations

from typing import Any

import pytest

from obuild.builder import on_failure
from obuild.errors import UsageError
from obuild.events import Note, Teller
from obuild.executors.protocol import Reachable
from obuild.plan.steps import Command
from obuild.spec import UnixUser
from tests.support.fakes import FakeExecutor, FakeSession, Heard

COMMAND = Command(("sh", "-c", "x"), "/", (), UnixUser(0, 0), False)


def after(way: str, session: Any) -> list[str]:
    """Run a way of handling a failed command in a session; return its notes."""
    heard = Heard()
    handle = on_failure.chosen(way, jobs=1)
    assert handle
    handle(session, COMMAND, 7, Teller(heard))
    return [event.text for event in heard if isinstance(event, Note)]


def test_keep_prints_the_login_command_and_waits(fake_session: FakeSession) -> None:
    assert isinstance(fake_session, Reachable)
    first, second = after("keep", fake_session)
    assert "exit status 7" in first
    assert second == "    ssh guest"
    assert fake_session.executor.seen == ["wait"]


def test_keep_does_nothing_if_the_session_allows_no_login() -> None:
    (note,) = after("keep", object())
    assert note.endswith("its session allows no login, so it is not kept")


def test_shell_opens_where_the_command_ran(fake_session: FakeSession) -> None:
    (note,) = after("shell", fake_session)
    assert "opening a shell" in note
    assert fake_session.executor.commands == [COMMAND]


@pytest.fixture
def fake_session() -> FakeSession:
    draft: Any = None  # nothing here needs one
    return FakeSession(FakeExecutor(), draft, {})


def test_stop_does_nothing() -> None:
    assert on_failure.chosen("stop", jobs=4) is None


@pytest.mark.parametrize(
    ("way", "jobs", "why"), [("hope", 1, "it can be stop, shell, keep"), ("keep", 2, "one stage at a time")]
)
def test_invalid_choices_are_refused(way: str, jobs: int, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        on_failure.chosen(way, jobs=jobs)
