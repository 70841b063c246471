"""A listener that raises ends the build, whatever it is doing then, and is not called again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from obuild import spec
from obuild.builder.engine import Engine
from obuild.builder.listener import Guarded, ListenerFailed
from obuild.errors import OutputError
from obuild.events import Event, Note, Output, Place, Saved, StageEnded, Started, What
from obuild.executors.settings import Settings
from obuild.store.layers import Store
from tests.support.fakes import FakeExecutor

SPEC = b"((build x ((from tiny) (run (shell x)))) (build y ((from tiny) (run (shell y)))) (from tiny))"


def test_a_listener_that_raised_is_not_called_again() -> None:
    heard: list[Event] = []

    def listen(event: Event) -> None:
        heard.append(event)
        raise ValueError("full")

    guarded = Guarded(listen, threads=False)
    for _ in range(2):
        with pytest.raises(ListenerFailed, match="full"):
            guarded(Event(Note("x"), Place(), 0.0))
    assert len(heard) == 1


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("jobs", [1, 4])
@pytest.mark.parametrize("kind", [Started, Output, Saved, StageEnded])
@pytest.mark.parametrize(
    "error", [ValueError("full"), OSError(28, "No space left on device"), OutputError("cannot write to stdout")]
)
def test_an_exception_of_the_listener_ends_the_build_and_is_raised(
    store: Store, executor: FakeExecutor, tmp_path: Path, jobs: int, kind: type[What], error: Exception
) -> None:
    after: list[Event] = []
    raised: list[bool] = []

    def listen(event: Event) -> None:
        if raised:
            after.append(event)
        if isinstance(event.what, kind):
            raised.append(True)
            raise error

    with pytest.raises(type(error)) as caught:
        Engine(tmp_path, store, Settings(accel="tcg"), listen, jobs=jobs).build(spec.parse(SPEC))
    assert caught.value is error
    assert after == []
    assert executor.seen.count("open") == executor.seen.count("sealed") + executor.seen.count("killed")
    for folder in (store.result_tmp, store.cache_tmp, store.locks):
        assert os.listdir(folder) == []


@pytest.mark.usefixtures("tiny")
def test_a_failing_listener_does_not_mark_the_step_as_failed(
    store: Store, executor: FakeExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other builds that wait for the step make it themselves."""

    def listen(event: Event) -> None:
        if isinstance(event.what, Output):
            raise OutputError("cannot write to stdout")

    monkeypatch.setattr("obuild.host.locks.Claim.leave", lambda claim, word: pytest.fail("it left a word"))
    with pytest.raises(OutputError):
        Engine(tmp_path, store, Settings(accel="tcg"), listen).build(spec.parse(b"((from tiny) (run (shell x)))"))
    assert "killed" in executor.seen
