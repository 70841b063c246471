"""Watching builds: what somebody sees who is there from the beginning, comes late, or sees a build die."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from obuild import spec
from obuild.builder.engine import Engine
from obuild.builder.recorder import Recorder
from obuild.builder.watching import BEFORE, Seen, Watcher
from obuild.errors import StepFailed
from obuild.events import Done, Hit, Missing, Note, Output, Place, Saved, Started, What
from obuild.executors.settings import Settings
from obuild.store.layers import Store
from tests.support.fakes import FakeExecutor, Run
from tests.support.snapshots import looks

pytestmark = pytest.mark.usefixtures("tiny", "guests")

Build = Callable[[str], None]


@pytest.fixture
def build(store: Store, tmp_path: Path) -> Build:
    def run(ops: str) -> None:
        with (
            suppress(StepFailed),
            Recorder(store, lambda event: None, spec=tmp_path / "s.spec", source=tmp_path) as recorder,
        ):
            Engine(tmp_path, store, Settings(accel="tcg"), recorder).build(spec.parse(ops.encode()))

    return run


@pytest.fixture
def watcher(store: Store) -> Iterator[Watcher]:
    with Watcher(Store.look(store.root)) as watcher:
        yield watcher


def of(seen: list[Seen], *kinds: type[What]) -> list[What]:
    return [each.event.what for each in seen if isinstance(each.event.what, kinds)]


def test_who_is_there_from_the_beginning_sees_every_step_and_its_output(
    store: Store, build: Build, executor: FakeExecutor, watcher: Watcher
) -> None:
    seen: list[Seen] = []

    def act(run: Run) -> int:
        run.output(b"one\n")
        seen.extend(watcher.look())
        run.output(b"two\n")
        return 0

    executor.script = {"a": act}
    build("((from tiny) (run (shell a)) (run (shell b)))")
    assert of(seen, Output) == [Output(b"one\n")]
    assert watcher.running == 1
    seen.extend(watcher.look())
    assert watcher.running == 0
    told = of(seen, Started, Output, Saved, Done)
    assert [type(what) for what in told] == [
        Started,
        Saved,
        Started,
        Output,
        Output,
        Saved,
        Started,
        Output,
        Saved,
        Done,
    ]
    assert of(seen, Output) == [Output(b"one\n"), Output(b"two\n"), Output(b"b\n")]
    assert list(watcher.look()) == []


def test_who_comes_late_sees_what_is_at_work_and_the_end_of_its_output(
    store: Store, build: Build, executor: FakeExecutor, watcher: Watcher
) -> None:
    seen: list[Seen] = []

    def act(run: Run) -> int:
        run.output(b"x" * (BEFORE + 1) + b"y")
        seen.extend(watcher.look())
        run.output(b"z")
        return 0

    executor.script = {"b": act}
    build("((from tiny) (run (shell a)) (run (shell b)))")
    old = [each for each in seen if each.old]
    assert [type(what) for what in of(old, Started, Saved)] == [Started, Saved, Started, Saved, Started]
    (output,) = of([each for each in seen if not each.old], Output)
    assert isinstance(output, Output)
    assert (len(output.data), output.data[-1:]) == (BEFORE, b"y")
    assert of(list(watcher.look()), Output) == [Output(b"z")]


def test_hits_have_their_op(store: Store, build: Build, executor: FakeExecutor, watcher: Watcher) -> None:
    build("((from tiny) (run (shell a)))")
    seen: list[Seen] = []

    def act(run: Run) -> int:
        seen.extend(watcher.look())
        return 0

    executor.script = {"b": act}
    build("((from tiny) (run (shell a)) (run (shell b)))")
    assert [what.text for what in of(seen, Started) if isinstance(what, Started)] == [
        *("(from tiny)", "/: (run (shell a))", "/: (run (shell b))"),
    ]
    assert all(hit.log.is_file() for hit in of(seen, Hit) if isinstance(hit, Hit))
    assert len(of(seen, Missing)) == 1


def test_the_output_of_a_failed_step_is_seen_and_why_it_failed(
    store: Store, build: Build, executor: FakeExecutor, watcher: Watcher
) -> None:
    seen: list[Seen] = []

    def act(run: Run) -> int:
        seen.extend(watcher.look())
        run.output(b"oh\n")
        return 3

    executor.script = {"a": act}
    build("((from tiny) (run (shell a)))")
    seen = list(watcher.look())
    assert of(seen, Output) == [Output(b"oh\n")]
    assert of(seen, Note) == [Note('the build failed: "a" failed with exit status 3')]


def test_a_step_that_is_too_fast_to_be_seen_leaves_its_output(
    store: Store, build: Build, executor: FakeExecutor, watcher: Watcher
) -> None:
    looked: list[Seen] = []

    def first(run: Run) -> int:
        looked.extend(watcher.look())
        return 0

    def fail(run: Run) -> int:
        run.output(b"too fast\n")
        return 1

    executor.script = {"a": first, "b": fail}
    build("((from tiny) (run (shell a)) (run (shell b)))")
    assert of(list(watcher.look()), Output) == [Output(b"too fast\n")]


def test_several_builds_are_told_apart(
    store: Store, build: Build, executor: FakeExecutor, watcher: Watcher
) -> None:
    seen: list[Seen] = []

    def inner(run: Run) -> int:
        seen.extend(watcher.look())
        assert watcher.running == 2
        return 0

    def outer(run: Run) -> int:
        build("((from tiny) (run (shell inner)))")
        return 0

    executor.script = {"inner": inner, "outer": outer}
    build("((from tiny) (run (shell outer)))")
    seen.extend(watcher.look())
    assert sorted({each.build for each in seen}) == store.builds.names()
    assert len(of(seen, Done)) == 2


def test_a_killed_build_is_over(store: Store, watcher: Watcher) -> None:
    with store.builds.begin(1.0) as (_, file):
        file.write(b'{"event": "build", "format": 1, "time": 1.0, "spec": "s", "source": "", "version": ""}\n')
        assert list(watcher.look()) == []
        assert watcher.running == 1
    assert of(list(watcher.look()), Note) == [Note("the build was killed")]
    assert watcher.running == 0


def test_a_build_that_is_just_being_begun_is_not_missed(store: Store, watcher: Watcher) -> None:
    store.builds.folder.mkdir()
    place = store.builds.folder / "20260101-000000"
    place.touch()
    assert (list(watcher.look()), watcher.running) == ([], 0)
    place.unlink()
    with store.builds.begin(1_767_225_600.0) as (name, _):
        assert name == place.name
        assert (list(watcher.look()), watcher.running) == ([], 1)


def test_watching_changes_nothing(store: Store, build: Build, executor: FakeExecutor, watcher: Watcher) -> None:
    def act(run: Run) -> int:
        before = looks(store.root)
        assert list(watcher.look())
        assert looks(store.root) == before
        return 0

    executor.script = {"a": act}
    build("((from tiny) (run (shell a)))")


def test_ids_from_a_damaged_record_are_no_paths(store: Store, tmp_path: Path, watcher: Watcher) -> None:
    (tmp_path / "log").write_text("precious")
    step = f'"stage": "", "step": "../../{tmp_path.name}", "op": 1, "time": 1.0'
    with store.builds.begin(1.0) as (_, file):
        file.write(f'{{"event": "started", {step}, "text": "x"}}\n'.encode())
        seen = list(watcher.look())
        file.write(f'{{"event": "hit", {step}, "id": "..", "log": "/etc/passwd", "told": false}}\n'.encode())
        seen += list(watcher.look())
    assert of(seen, Output) == []
    assert [hit.log for hit in of(seen, Hit) if isinstance(hit, Hit)] == [Path()]
    assert seen[0].event.place == Place("", f"../../{tmp_path.name}", 1)
