"""Two engines in one process: neither affects the other."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from obuild import spec
from obuild.builder.engine import Engine
from obuild.errors import Cancelled, MachineError, ObuildError, StepFailed
from obuild.executors.all import EXECUTORS
from obuild.executors.settings import Settings
from obuild.host.process import CancelScope
from obuild.plan.keys import LayerId
from obuild.store.layers import Store
from tests.support.fakes import FakeExecutor, Heard, Run, ScriptedGuests

#: How long the threads of a test wait for each other, in seconds; only a failure takes that long.
LONG = 60.0


@dataclass
class Build:
    """A build in its own thread and store. Its command `long` runs a program for ten minutes."""

    engine: Engine
    started: threading.Event = field(default_factory=threading.Event)
    programs: list[subprocess.Popen[bytes]] = field(default_factory=list)
    result: LayerId | None = None
    error: BaseException | None = None
    thread: threading.Thread = field(init=False)

    def start(self, ops: str) -> None:
        self.thread = threading.Thread(target=self._run, args=[spec.parse(ops.encode())])
        self.thread.start()
        assert self.started.wait(LONG)

    def _run(self, stage: spec.Stage) -> None:
        try:
            self.result = self.engine.build(stage)
        except BaseException as error:
            self.error = error

    def join(self) -> None:
        self.thread.join(LONG)
        assert not self.thread.is_alive()

    def long(self, scope: CancelScope, said: Path) -> int:
        with said.open("wb") as stderr, scope.spawned(["sleep", "600"], stderr=stderr) as child:
            self.programs.append(child)
            self.started.set()
            if child.wait() == -9:
                raise MachineError("QEMU was killed by signal 9 before the step was done")
        return 0


def make(name: str, root: Path, disk: Path, monkeypatch: pytest.MonkeyPatch, jobs: int = 1) -> Build:
    store = Store.open(root / name)
    (store.base_image / "tiny.qcow2").write_bytes(disk.read_bytes())
    guests = ScriptedGuests(FakeExecutor())
    monkeypatch.setitem(EXECUTORS, name, guests)
    build = Build(Engine(root, store, Settings(accel="tcg"), Heard(), jobs=jobs, executor=name))

    def long(run: Run) -> int:
        return build.long(guests.configs[-1].scope, root / f"{name}.said")

    def fail(run: Run) -> int:
        assert build.started.wait(LONG)
        return 1

    guests.executor.script = {"long": long, "fail": fail}
    return build


LONG_STEP = "((from tiny) (run (shell long)))"
A_STAGE_FAILS = (
    "((build one ((from tiny) (run (shell fail)))) (build two ((from tiny) (run (shell long)))) (from tiny))"
)


@pytest.fixture
def other(tmp_path: Path, qcow2_disk: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Build]:
    """A build in the middle of a step. It must still be there when the test ends, and then succeed."""
    build = make("other", tmp_path, qcow2_disk, monkeypatch)
    build.start(LONG_STEP)
    yield build
    (program,) = build.programs
    assert program.poll() is None
    program.terminate()
    build.join()
    assert build.error is None
    assert build.result


@pytest.mark.usefixtures("other")
def test_cancelling_a_build_ends_no_other_build(
    tmp_path: Path, qcow2_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = make("mine", tmp_path, qcow2_disk, monkeypatch)
    build.start(LONG_STEP)
    build.engine.cancel()
    build.join()
    assert isinstance(build.error, Cancelled)
    assert build.error.exit_code == 130
    store = build.engine.store
    assert [layer.parent for layer in store.layers()] == [None]  # the base is complete, so it stays
    assert not any(store.result_tmp.iterdir())


@pytest.mark.usefixtures("other")
def test_a_failing_stage_ends_only_the_other_stages_of_its_build(
    tmp_path: Path, qcow2_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = make("mine", tmp_path, qcow2_disk, monkeypatch, jobs=2)
    build.start(A_STAGE_FAILS)
    build.join()
    assert isinstance(build.error, StepFailed)
    assert [program.returncode for program in build.programs] == [-9]
    assert not any(build.engine.store.result_tmp.iterdir())
    again = build.engine.build(spec.parse(b"((from tiny) (run (shell fine)))"))  # the engine was not cancelled
    assert build.engine.store.find(again)


def test_a_cancelled_engine_builds_no_more(
    tmp_path: Path, qcow2_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = make("mine", tmp_path, qcow2_disk, monkeypatch)
    build.engine.cancel()
    with pytest.raises(ObuildError, match="cancelled"):
        build.engine.build(spec.parse(LONG_STEP.encode()))
    assert build.engine.store.layers() == []
    assert build.programs == []
