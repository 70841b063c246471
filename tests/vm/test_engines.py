"""Two engines in one process, each with real guests and its own store."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from obuild import spec
from obuild.builder.engine import Engine
from obuild.errors import Cancelled, ObuildError, StepFailed
from obuild.events import Event, Output
from obuild.executors.settings import Settings
from obuild.store.layers import Store
from tests.support.program import Program, booted_store

pytestmark = pytest.mark.vm

#: How long emulated guests may take to boot, in seconds.
LONG = 240.0


class Build:
    """A build in a thread."""

    def __init__(self, store: Path, text: str) -> None:
        self.output = b""
        self.started = threading.Event()
        self.error: ObuildError | None = None
        self.store = Store.open(store)
        self.engine = Engine(Path(), self.store, Settings(), self._hear, jobs=2)
        self.thread = threading.Thread(target=self._run, args=[spec.parse(text.encode())])
        self.thread.start()

    def _hear(self, event: Event) -> None:
        if isinstance(event.what, Output):
            self.output += event.what.data
            if b"started" in self.output:
                self.started.set()

    def _run(self, stage: spec.Stage) -> None:
        try:
            self.engine.build(stage)
        except ObuildError as error:
            self.error = error

    def join(self) -> None:
        self.thread.join(LONG)
        assert not self.thread.is_alive()


def clean(store: Store) -> bool:
    """Return whether no machine is left."""
    return not any(store.result_tmp.iterdir()) and not store.states.unfinished()


@pytest.mark.parametrize("how", ["cancelled", pytest.param("failing", marks=pytest.mark.long)])
def test_cancelling_or_failing_one_build_leaves_the_others_machines_alone(
    how: str, ready: Program, tmp_path: Path, micro_images: Path, whole_run: Path
) -> None:
    endless = '(build endless ((from micro) (run (shell "echo started; sleep 10000"))))'
    fails = '(build fails ((from micro) (run (shell "exit 3"))))' if how == "failing" else ""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))  # refuses all connections until it listens
        go = f"until exec 3<>/dev/tcp/10.0.2.2/{server.getsockname()[1]}; do sleep 1; done 2>/dev/null"
        waits = f"(run (network host) (shell \"bash -c 'echo started; {go}; echo survived'\"))"
        other = Build(booted_store(tmp_path / "other", micro_images, whole_run), f"((from micro) {waits})")
        assert other.started.wait(LONG)
        mine = Build(ready.store, f"({endless} {fails} (from micro))")
        if how == "cancelled":
            assert mine.started.wait(LONG)
            mine.engine.cancel()
        mine.join()
        server.listen()
        other.join()
    assert isinstance(mine.error, Cancelled if how == "cancelled" else StepFailed)
    assert clean(mine.store)
    assert other.error is None
    assert b"survived\n" in other.output
    assert clean(other.store)
