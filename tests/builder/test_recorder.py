"""Every build leaves a record in its store: done, failed, interrupted or killed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from obuild import spec
from obuild.builder import history, records
from obuild.builder.engine import Engine
from obuild.builder.history import Build
from obuild.builder.recorder import LAST_OUTPUT, LONGEST_OP, Recorder
from obuild.errors import StepFailed, UsageError
from obuild.events import Event, Hit, Missing, Note, Output, Place, Planned, Saved
from obuild.executors.settings import Settings
from obuild.store.layers import Store
from tests.support.fakes import FakeExecutor, Heard, Run

pytestmark = pytest.mark.usefixtures("tiny", "guests")

Make = Callable[..., Heard]


@pytest.fixture
def make(store: Store, tmp_path: Path) -> Make:
    def run(ops: str, *, secrets: Mapping[str, bytes] | None = None, jobs: int = 1) -> Heard:
        heard = Heard()
        with Recorder(store, heard, spec=tmp_path / "my.spec", source=tmp_path) as recorder:
            stage = spec.parse(ops.encode("utf-8", "surrogateescape"))
            Engine(tmp_path, store, Settings(accel="tcg"), recorder, secrets or {}, jobs).build(stage)
        return heard

    return run


def last(store: Store) -> Build:
    return history.builds(store)[-1]


def told(store: Store) -> list[Event]:
    """The events in the last record."""
    return [event for event in history.events(store, last(store).id) if isinstance(event, Event)]


def raw(store: Store) -> bytes:
    return (store.builds.folder / last(store).id).read_bytes()


def test_a_build_is_recorded_with_what_it_made_and_found(store: Store, make: Make, tmp_path: Path) -> None:
    make("((from tiny) (run (shell a)))")
    heard = make("((from tiny) (run (shell a)) (run (shell b)))")
    first, second = history.builds(store)
    assert (first.outcome, first.steps, first.made, first.cached) == ("done", 2, 2, 0)
    assert (second.outcome, second.steps, second.made, second.cached) == ("done", 3, 1, 2)
    assert second.result == heard.of(Saved)[-1].id
    assert (second.spec, second.source) == (str(tmp_path / "my.spec"), str(tmp_path))
    assert second.seconds is not None


def test_the_record_has_the_events_without_output(store: Store, make: Make) -> None:
    heard = make("((from tiny) (run (shell a)))")
    kept = [event for event in heard.events if not isinstance(event.what, Output)]
    assert told(store) == kept
    make("((from tiny) (run (shell a)) (run (shell b)))")
    assert [type(event.what) for event in told(store) if event.place.op == 2] == [Hit]
    (miss,) = [event.what for event in told(store) if isinstance(event.what, Missing)]
    assert miss == Missing(("no similar layer in the store",))


def test_the_record_says_why_a_step_was_made(store: Store, make: Make) -> None:
    made = make('((from tiny) (run (shell "make all")) (run (shell x)))').of(Saved)
    heard = make('((from tiny) (run (shell "make one")) (run (shell x)))')
    why = [event.what for event in told(store) if isinstance(event.what, Missing)]
    assert why == heard.of(Missing)
    assert why[0][:2] == (("the command changed: make all → make one",), made[1].id)


def test_a_failed_build_keeps_the_end_of_the_output(store: Store, make: Make, executor: FakeExecutor) -> None:
    def fail(run: Run) -> int:
        run.output(b"begin\n" + b"x" * LAST_OUTPUT)
        run.output(b"\xff<script>end\n")
        return 3

    executor.script = {"bad": fail}
    with pytest.raises(StepFailed):
        make("((from tiny) (run (shell good)) (run (shell bad)) (run (shell never)))")
    build = last(store)
    assert (build.outcome, build.steps, build.made, build.result) == ("failed", 4, 2, "")
    lines = [each for each in history.events(store, build.id) if not isinstance(each, Event)]
    (failed,) = [line for line in lines if line["event"] == "failed"]
    output = records.bytes_of(failed, "output")
    assert output.endswith(b"x\xff<script>end\n")
    assert len(output) == LAST_OUTPUT
    assert failed["message"] == '"bad" failed with exit status 3'
    assert failed["op"] == 3


def test_a_build_that_is_refused_is_recorded(store: Store, make: Make) -> None:
    with pytest.raises(UsageError):
        make("((from nosuch))")
    assert (last(store).outcome, last(store).steps) == ("failed", 0)


def test_an_interrupted_build_is_recorded(store: Store, make: Make, executor: FakeExecutor) -> None:
    def interrupt(run: Run) -> int:
        raise KeyboardInterrupt

    executor.script = {"a": interrupt}
    with pytest.raises(KeyboardInterrupt):
        make("((from tiny) (run (shell a)))")
    assert (last(store).outcome, last(store).made) == ("interrupted", 1)


def test_a_running_build_can_be_seen(store: Store, make: Make, executor: FakeExecutor) -> None:
    seen = []

    def look(run: Run) -> int:
        seen.append(last(store))
        return 0

    executor.script = {"a": look}
    make("((from tiny) (run (shell a)))")
    assert (seen[0].outcome, seen[0].steps, seen[0].made, seen[0].seconds) == ("running", 2, 1, None)


def test_a_killed_build_was_interrupted(store: Store, make: Make) -> None:
    make("((from tiny) (run (shell a)))")
    record = raw(store)
    *lines, summary = record.splitlines(keepends=True)
    (store.builds.folder / last(store).id).write_bytes(b"".join(lines) + summary[:20])
    build = last(store)
    assert (build.outcome, build.steps, build.made, build.seconds) == ("interrupted", 2, 2, None)


def test_no_secret_is_recorded(store: Store, make: Make, executor: FakeExecutor) -> None:
    def fail(run: Run) -> int:
        run.output(b"it is hunter2\n")
        return 1

    executor.script = {"show": fail}
    with pytest.raises(StepFailed):
        make("((from tiny) (run (secrets (pw (target /pw))) (shell show)))", secrets={"pw": b"hunter2"})
    assert b"it is" in raw(store)
    assert b"hunter2" not in raw(store)


def test_long_ops_are_cut_and_odd_bytes_kept(store: Store, make: Make) -> None:
    make(f'((from tiny) (comment "{"x" * 1_000_000}") (run (shell "{"x" * 100_000}")))')
    assert len(raw(store)) < 20_000
    (plan,) = [event.what for event in told(store) if isinstance(event.what, Planned)]
    assert len(plan.steps[1].text) == LONGEST_OP
    with Recorder(store, Heard(), spec=Path("\udcff"), source=Path()) as recorder:
        recorder(Event(Note("it is \udcff"), Place("\udcfe"), 1.0))
    assert told(store) == [Event(Note("it is \udcff"), Place("\udcfe"), 1.0)]
    assert last(store).spec.endswith("/\udcff")


def test_lines_that_make_no_sense_are_left_out(store: Store, make: Make) -> None:
    make("((from tiny) (run (shell a)))")
    name = last(store).id
    first, *rest = raw(store).splitlines(keepends=True)
    count = len(told(store))
    junk = b'nonsense\n[]\n{"event": "saved"}\n{"event": "saved", "op": 1e999}\n' + b"[" * 100_000 + b"\n"
    (store.builds.folder / name).write_bytes(first + junk + b"".join(rest))
    assert len(told(store)) == count
    (store.builds.folder / name).write_bytes(junk)
    assert history.builds(store) == []


def test_a_build_goes_on_without_its_record(store: Store, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    store.builds.folder.write_text("in the way")
    assert make("((from tiny) (run (shell a)))").of(Saved)
    store.builds.folder.unlink()
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr("obuild.host.locks.create_locked", lambda path: full)
        assert make("((from tiny) (run (shell b)))").of(Saved)
    assert history.builds(store) == []


def test_stages_are_counted_together(store: Store, make: Make) -> None:
    make(
        """((build one ((from tiny) (run (shell a)))) (build two ((from tiny) (run (shell b))))
            (from tiny) (run (shell c)))""",
        jobs=2,
    )
    assert (last(store).steps, last(store).made + last(store).cached) == (6, 6)


def test_a_listener_that_fails_is_a_failure(store: Store, tmp_path: Path) -> None:
    def broken(event: Event) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError), Recorder(store, broken, spec=tmp_path, source=tmp_path) as recorder:
        Engine(tmp_path, store, Settings(accel="tcg"), recorder).build(spec.parse(b"((from tiny))"))
    assert last(store).outcome == "failed"


# -- finding one


def test_a_build_is_found_by_name_by_its_layer_and_by_a_tag(store: Store, make: Make) -> None:
    one = make("((from tiny) (run (shell a)))").of(Saved)[-1].id
    first = last(store).id
    two = make("((from tiny) (run (shell a)) (run (shell b)))").of(Saved)[-1].id
    second = last(store).id
    store.tag(store.resolve(one), "web")
    for wanted, name in (
        ("last", second),
        (first, first),
        (one[:12], first),
        (two, second),
        ("web", first),
        (str(store.layer(store.resolve(one)).parent), second),
    ):
        assert history.find(store, wanted) == name
    with pytest.raises(UsageError, match="no layer has the id"):
        history.find(store, "beef" * 16)


def test_the_build_of_a_removed_layer_is_found(store: Store, make: Make) -> None:
    made = make("((from tiny) (run (shell a)))").of(Saved)[-1].id
    store.remove(store.resolve(made), store.parents())
    assert history.find(store, made[:12]) == last(store).id


def test_without_a_record_nothing_is_found(store: Store) -> None:
    with pytest.raises(UsageError, match="no record of a build"):
        history.find(store, "last")


def test_the_record_is_json(store: Store, make: Make) -> None:
    make("((from tiny) (run (shell a)))")
    lines = [json.loads(line) for line in raw(store).splitlines()]
    assert [lines[0]["event"], lines[-1]["event"]] == ["build", "summary"]
    assert lines[0]["format"] == 1
