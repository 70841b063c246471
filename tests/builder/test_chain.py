"""The main flow, with real layers and a scripted executor instead of machines."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import subprocess
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from obuild import spec
from obuild.bases import making
from obuild.builder.chain import Builder
from obuild.errors import Cancelled, MachineError, ObuildError, StepFailed, StoreError
from obuild.events import Event, Hit, Note, Output, Place, Saved, Started, Teller
from obuild.host.process import CancelScope
from obuild.plan.keys import LayerId
from obuild.plan.planner import plan
from obuild.plan.steps import Chain
from obuild.store import removal
from obuild.store.index import Index
from obuild.store.layers import Layer, Store
from tests.support.fakes import Act, FakeExecutor, Heard, Run

ChainMaker = Callable[[str], Chain]
ABC = "(run (shell a)) (run (shell b)) (run (shell c))"


def build(
    store: Store, chain: Chain, script: dict[str, Act] | None = None, secrets: dict[str, bytes] | None = None
) -> tuple[FakeExecutor, Heard]:
    executor, heard = FakeExecutor(script or {}), Heard()
    assert Builder(store, lambda: executor, heard.tell, secrets or {}).build(chain) == chain.steps[-1].id
    return executor, heard


def fail(status: int) -> Act:
    return lambda run: status


def drafts(store: Store) -> list[str]:
    """Return what a build must never leave behind."""
    return [*os.listdir(store.result_tmp), *os.listdir(store.cache_tmp), *os.listdir(store.locks)]


def test_a_first_build_makes_every_step_in_order(store: Store, chain: ChainMaker) -> None:
    steps = chain(ABC).steps
    executor, heard = build(store, chain(ABC))
    assert executor.seen == ["open", "a", "sealed", "open", "b", "sealed", "open", "c", "sealed"]
    assert [saved.id for saved in heard.of(Saved)] == [step.id for step in steps]
    assert drafts(store) == []


def test_a_build_reports_its_steps_in_order(store: Store, chain: ChainMaker) -> None:
    made = chain("(env A 1) (run (shell a)) (comment bye)")
    root, step = made.steps
    _, heard = build(store, made)
    saved = heard.of(Saved)
    assert heard == [
        Started("(from tiny)"),
        Note(f"importing {made.base.path}"),
        Saved(root.id, saved[0].seconds),
        Started("/: (env A 1)"),
        Started("/: (run (shell a))"),
        Output(b"a\n"),
        Saved(step.id, saved[1].seconds),
        Started("/: (comment bye)"),
    ]
    assert [type(said) for said in heard] == [Started, Note, Saved, Started, Started, Output, Saved, Started]
    assert heard.at(Started) == [Place("", root.id, 1), Place("", "", 2), Place("", step.id, 3), Place("", "", 4)]
    assert heard.at(Saved) == [Place("", root.id, 1), Place("", step.id, 3)]
    assert heard.at(Output) == [Place("", step.id, 3)]


def test_a_second_build_runs_nothing_and_shows_the_old_logs(store: Store, chain: ChainMaker) -> None:
    build(store, chain(ABC))
    executor, heard = build(store, chain(ABC))
    assert executor.seen == []
    steps = chain(ABC).steps
    logs = [b"", b"a\n", b"b\n", b"c\n"]
    assert [hit.id for hit in heard.of(Hit)] == [step.id for step in steps]
    assert heard.printed == logs
    assert heard.of(Saved) == []


def test_a_change_rebuilds_only_the_steps_from_there_on(store: Store, chain: ChainMaker) -> None:
    build(store, chain(ABC))
    executor, heard = build(store, chain("(run (shell a)) (run (shell B)) (run (shell c))"))
    assert [seen for seen in executor.seen if len(seen) == 1] == ["B", "c"]
    assert len(heard.of(Hit)) == 2


def test_a_layer_holds_the_log_of_its_step(store: Store, chain: ChainMaker) -> None:
    build(store, chain(ABC))
    layer = store.find(chain(ABC).steps[2].id)
    assert layer is not None
    assert layer.log.read_bytes() == b"b\n"


def test_the_base_is_copied_so_that_its_file_may_change(store: Store, chain: ChainMaker, tiny: Path) -> None:
    made = chain("(run (shell a))")
    before = tiny.read_bytes()
    build(store, made)
    tiny.unlink()
    layer = store.find(made.steps[0].id)
    assert layer is not None
    assert layer.image.read_bytes() == before
    build(store, made)


def test_a_base_that_changes_while_it_is_imported_is_refused(store: Store, chain: ChainMaker, tiny: Path) -> None:
    made = chain("")
    os.utime(tiny, ns=(0, 1))
    with pytest.raises(ObuildError, match="changed while it was imported"):
        build(store, made)
    assert store.layers() == []
    assert drafts(store) == []


def test_a_kernel_beside_the_base_goes_into_its_layer(store: Store, chain: ChainMaker, tiny: Path) -> None:
    tiny.with_suffix(".toml").write_text('firmware = "kernel"\n')
    tiny.with_suffix(".vmlinuz").write_bytes(b"a kernel")
    made = chain("")
    build(store, made)
    tiny.with_suffix(".vmlinuz").unlink()
    layer = store.find(made.steps[0].id)
    assert layer is not None
    kernel = layer.image.with_name("image.vmlinuz")
    assert kernel.read_bytes() == b"a kernel"
    assert kernel.stat().st_mode & 0o777 == 0o444


def test_a_kernel_that_changes_while_it_is_imported_is_refused(
    store: Store, chain: ChainMaker, tiny: Path
) -> None:
    tiny.with_suffix(".toml").write_text('firmware = "kernel"\n')
    tiny.with_suffix(".vmlinuz").write_bytes(b"a kernel")
    made = chain("")
    tiny.with_suffix(".vmlinuz").write_bytes(b"another kernel")
    with pytest.raises(ObuildError, match=r"tiny\.vmlinuz changed while it was imported"):
        build(store, made)
    assert store.layers() == []


@pytest.mark.parametrize(
    "error", [MachineError("lost"), StepFailed("no"), KeyboardInterrupt(), OSError(errno.EIO, "broken")]
)
def test_a_failing_step_leaves_nothing_and_ends_its_machine(
    store: Store, chain: ChainMaker, error: BaseException
) -> None:
    def act(run: Run) -> int:
        run.output(b"half a line")
        raise error

    executor = FakeExecutor({"b": act})
    with pytest.raises((type(error), StoreError)):
        Builder(store, lambda: executor, Heard().tell).build(chain(ABC))
    assert executor.seen == ["open", "a", "sealed", "open", "b", "killed"]
    assert {layer.id for layer in store.layers()} == {step.id for step in chain(ABC).steps[:2]}
    assert drafts(store) == []


def test_the_error_quotes_a_failed_command_with_its_status(store: Store, chain: ChainMaker) -> None:
    with pytest.raises(StepFailed, match=r'"b".*exit status 42'):
        build(store, chain(ABC), {"b": fail(42)})


def test_the_error_quotes_only_part_of_a_long_command(store: Store, chain: ChainMaker) -> None:
    with pytest.raises(StepFailed) as caught:
        build(store, chain(f"(run (shell {'x' * 5000}))"), {"x" * 5000: fail(1)})
    assert len(caught.value.message) < 300


def test_a_build_continues_where_the_last_one_failed(store: Store, chain: ChainMaker) -> None:
    with pytest.raises(StepFailed):
        build(store, chain(ABC), {"b": fail(1)})
    executor, _ = build(store, chain(ABC))
    assert [seen for seen in executor.seen if len(seen) == 1] == ["b", "c"]


def test_each_step_is_an_overlay_on_the_previous_one(store: Store, chain: ChainMaker) -> None:
    build(store, chain(ABC))
    last = store.find(chain(ABC).steps[-1].id)
    assert last is not None
    argv = ["qemu-img", "info", "--output=json", "--backing-chain", str(last.image)]
    images = json.loads(subprocess.run(argv, check=True, capture_output=True).stdout)
    ids = [Path(image["filename"]).resolve().parent.parent.name for image in images]
    assert ids == [step.id for step in reversed(chain(ABC).steps)]


@pytest.mark.parametrize(("op", "opened"), [("(network host)", "open with network"), ("(network)", "open")])
def test_a_machine_has_a_network_only_if_its_step_asks_for_it(
    store: Store, chain: ChainMaker, op: str, opened: str
) -> None:
    executor, _ = build(store, chain(f"(run {op} (shell a))"))
    assert executor.seen[0] == opened


def test_a_copy_is_sent_without_a_network(store: Store, chain: ChainMaker, tmp_path: Path) -> None:
    (tmp_path / "source" / "file").write_text("x")
    executor, _ = build(store, chain("(workdir /w) (copy (src file) (dst sub/))"))
    assert executor.seen == ["open", "send to /w/sub", "sealed"]


# -- caches


def grow(status: int) -> Act:
    """Add a byte to each cache, and end with the given status."""

    def act(run: Run) -> int:
        for old in run.caches:
            run.new(old).write_bytes((old.read_bytes() if old.exists() else b"") + b"x")
        return status

    return act


def cached(store: Store, name: str) -> bytes:
    with store.caches.borrow(name) as copy:
        return copy.path.read_bytes()


def test_a_cache_outlives_its_step_whether_it_succeeds_or_fails(store: Store, chain: ChainMaker) -> None:
    ops = "(run (cache (c (target /c))) (shell {}))"
    build(store, chain(ops.format("good")), {"good": grow(0)})
    assert cached(store, "c") == b"x"
    with pytest.raises(StepFailed):
        build(store, chain(ops.format("bad")), {"bad": grow(1)})
    assert cached(store, "c") == b"xx"
    assert drafts(store) == []


def test_caches_come_in_the_order_of_the_op(store: Store, chain: ChainMaker) -> None:
    names: list[str] = []

    def act(run: Run) -> int:
        names.extend(path.parent.name.partition("-c-")[2] for path in run.caches)
        return 0

    build(store, chain("(run (cache (b (target /b)) (a (target /a))) (shell x))"), {"x": act})
    assert names == ["b", "a"]


# -- secrets


def test_the_value_of_a_secret_reaches_the_step_and_nothing_that_is_kept(
    store: Store, chain: ChainMaker, tmp_path: Path
) -> None:
    value = b"correct horse battery"
    ops = "((from tiny) (run (secrets (s (target /s))) (shell x)))"

    def act(run: Run) -> int:
        assert run.secrets["s"] == value
        run.output(b"it is: correct horse")
        run.output(b" battery\n")
        return 0

    made = plan(
        spec.parse(ops.encode()),
        source=tmp_path,
        bases={"tiny": making.find(store, "tiny", say=print)},
        secrets=("s",),
    ).chain()
    _, heard = build(store, made, {"x": act}, {"s": value})
    said = b"".join(event.data for event in heard if isinstance(event, Output))
    assert said == b"it is: ***\n"
    assert value.decode() not in repr(heard.events)
    for path in store.root.rglob("*"):
        assert not path.is_file() or value not in path.read_bytes(), path


# -- other processes


def test_layers_below_a_running_step_cannot_be_removed(store: Store, chain: ChainMaker) -> None:
    root, first = (step.id for step in chain("(run (shell a))").steps)
    stayed: list[LayerId] = []

    def act(run: Run) -> int:
        stayed.extend(removal.clean(Store.open(store.root), tell=lambda id: None))
        return 0

    build(store, chain(ABC), {"b": act})
    assert stayed == [first, root]


def test_layers_that_a_build_found_cannot_be_removed_until_it_ends(store: Store, chain: ChainMaker) -> None:
    ids = [step.id for step in chain("(run (shell a)) (run (shell b))").steps]
    build(store, chain("(run (shell a)) (run (shell b))"))
    stayed: list[LayerId] = []

    def act(run: Run) -> int:
        stayed.extend(removal.delete(store, ids[0], tell=lambda id: None))
        return 0

    build(store, chain(ABC), {"c": act})
    assert stayed == ids[::-1]


def no_executor() -> FakeExecutor:
    raise AssertionError("no machine is needed")


def test_no_machine_starts_while_layers_are_found(store: Store, chain: ChainMaker) -> None:
    build(store, chain(ABC))
    heard = Heard()
    Builder(store, no_executor, heard.tell).build(chain(ABC))
    assert len(heard.of(Hit)) == 4


def test_a_layer_removed_just_before_its_use_is_rebuilt(
    store: Store, chain: ChainMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = chain(ABC)
    build(store, made)
    use = store.use

    def slow(id: LayerId) -> AbstractContextManager[Layer | None]:
        if id == made.steps[-1].id:
            monkeypatch.setattr(store, "use", use)
            removal.delete(store, id, tell=lambda id: None)
        return use(id)

    monkeypatch.setattr(store, "use", slow)
    executor, _ = build(store, made)
    assert executor.seen == ["open", "c", "sealed"]
    assert store.find(made.steps[-1].id)


@pytest.mark.parametrize("found", [True, False])
def test_a_layer_cannot_be_removed_while_the_listener_reads_its_log(
    store: Store, chain: ChainMaker, found: bool
) -> None:
    made = chain("(run (shell a))")
    if found:
        build(store, made)
    stayed: list[list[LayerId]] = []

    def tell(event: Event) -> None:
        if isinstance(event.what, Hit | Saved):
            stayed.append(removal.delete(store, made.steps[0].id, tell=lambda id: None))

    Builder(store, FakeExecutor, Teller(tell)).build(made)
    assert [bool(each) for each in stayed] == [True, True]


def test_a_damaged_layer_is_not_built_on(store: Store, chain: ChainMaker) -> None:
    build(store, chain("(run (shell a)) (run (shell b))"))
    image = store.result / chain(ABC).steps[1].id / "rootfs" / "image.qcow2"
    os.truncate(image, image.stat().st_size - 512)
    with pytest.raises(StoreError, match=r"damaged: its rootfs/image\.qcow2 has \d+ bytes, not \d+") as caught:
        build(store, chain(ABC))
    assert "fsck" in caught.value.hint
    assert store.find(chain(ABC).steps[-1].id) is None
    assert drafts(store) == []


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_layer_without_its_log_is_reported_as_damaged(store: Store, chain: ChainMaker, number: int) -> None:
    build(store, chain("(run (shell a)) (run (shell b))"))
    id = chain(ABC).steps[number].id
    (store.result / id / "log").unlink()
    executor = FakeExecutor()
    with pytest.raises(StoreError, match=rf"layer {id} is damaged: its log cannot be read: No such") as caught:
        Builder(store, lambda: executor, Heard().tell).build(chain(ABC))
    assert "obuild fsck --repair" in caught.value.hint
    assert executor.seen == []
    assert drafts(store) == []


# -- several builds of one step


class Meeting:
    """Two builds of the same chain: the second starts while the first is in the middle of `a`."""

    def __init__(self, store: Store, chain: Chain) -> None:
        self.store = store
        self.chain = chain
        self.executor, self.heard = FakeExecutor(), Heard()
        self.scope = CancelScope()  # of the first build
        self.waits = threading.Event()
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._second)

    def _second(self) -> None:
        def tell(event: Event) -> None:
            self.heard(event)
            if isinstance(event.what, Output):
                self.waits.set()

        try:
            Builder(Store(self.store.root), lambda: self.executor, Teller(tell)).build(self.chain)
        except BaseException as error:
            self.error = error

    def first(self, ending: int | BaseException, *, cancelled: bool = False) -> FakeExecutor:
        """Run the first build; `a` prints, waits until the other build has heard it, prints again, and ends."""

        def act(run: Run) -> int:
            run.output(b"one\n")
            self.thread.start()
            assert self.waits.wait(30)
            run.output(b"two\n")
            if cancelled:
                self.scope.cancel()
            if isinstance(ending, BaseException):
                raise ending
            return ending

        executor = FakeExecutor({"a": act})
        try:
            Builder(self.store, lambda: executor, Heard().tell, scope=self.scope).build(self.chain)
        except (ObuildError, KeyboardInterrupt):
            assert ending
        self.thread.join()
        return executor

    @property
    def log(self) -> bytes:
        return b"".join(event.data for event in self.heard if isinstance(event, Output))


def test_two_builds_of_the_same_steps_build_each_once(store: Store, chain: ChainMaker) -> None:
    meeting = Meeting(store, chain(ABC))
    first = meeting.first(0)
    runs = [seen for seen in [*first.seen, *meeting.executor.seen] if len(seen) == 1]
    assert sorted(runs) == ["a", "b", "c"]
    assert meeting.log.startswith(b"one\ntwo\n")
    told = {hit.id: hit.told for hit in meeting.heard.of(Hit)}
    assert told[chain(ABC).steps[1].id], "its log came as output"
    assert meeting.error is None


def test_a_build_that_waits_for_a_failing_step_fails_too(store: Store, chain: ChainMaker) -> None:
    meeting = Meeting(store, chain(ABC))
    meeting.first(7)
    assert isinstance(meeting.error, StepFailed)
    assert meeting.error.message == '"a" failed with exit status 7'
    assert meeting.executor.seen == []
    assert meeting.log == b"one\ntwo\n"
    again, _ = build(store, chain(ABC))  # a new build tries it
    assert "a" in again.seen


def test_a_waiting_build_takes_over_from_an_interrupted_one(store: Store, chain: ChainMaker) -> None:
    meeting = Meeting(store, chain(ABC))
    meeting.first(KeyboardInterrupt())
    assert meeting.error is None
    assert [seen for seen in meeting.executor.seen if len(seen) == 1] == ["a", "b", "c"]
    assert meeting.log == b"one\ntwo\na\nb\nc\n"
    assert Note("that build was interrupted; this one builds the step") in meeting.heard


def test_a_waiting_build_takes_over_from_a_cancelled_stage(store: Store, chain: ChainMaker) -> None:
    meeting = Meeting(store, chain(ABC))
    meeting.first(MachineError("QEMU is gone"), cancelled=True)
    assert meeting.error is None
    assert meeting.executor.seen.count("sealed") == 3


def test_a_waiting_build_stops_when_it_is_cancelled(store: Store, chain: ChainMaker) -> None:
    errors: list[BaseException] = []
    waits = threading.Event()

    def tell(event: Event) -> None:
        if isinstance(event.what, Note) and "another build" in event.what.text:
            waits.set()

    def wait() -> None:
        try:
            Builder(store, no_executor, Teller(tell), scope=scope).build(chain("(run (shell a))"))
        except Cancelled as error:
            errors.append(error)

    scope = CancelScope()
    with store.claim(chain("(run (shell a))").steps[0].id):
        thread = threading.Thread(target=wait)
        thread.start()
        assert waits.wait(30)
        scope.cancel()
        thread.join()
    assert len(errors) == 1


# -- the index


def test_each_new_layer_is_indexed_with_its_op(store: Store, chain: ChainMaker) -> None:
    build(store, chain("(env A 1) (run (shell a))"))
    with Index(store) as index:
        rows = index.rows()
    assert [row.op for row in rows] == ["(from tiny)", "/: (run (shell a))"]
    assert [(row.id, row.parent) for row in rows] == [
        (step.id, step.parent) for step in chain("(env A 1) (run (shell a))").steps
    ]


def test_an_op_that_is_not_utf8_is_indexed(store: Store, tiny: Path, tmp_path: Path) -> None:
    stage = spec.Stage("tiny", (spec.Workdir("/\udcff"), spec.Run("a\udcff")))
    made = plan(stage, source=tmp_path, bases={"tiny": making.find(store, "tiny", say=print)}).chain()
    build(store, made, {"a\udcff": lambda run: 0})
    with Index(store) as index:
        assert [row.op for row in index.rows()][1] == '/\\xff: (run (shell "a\\255"))'


def test_an_index_that_cannot_be_opened_fails_no_build(store: Store, chain: ChainMaker) -> None:
    (store.state / "db").write_text("in the way")
    _, heard = build(store, chain("(run (shell a))"))
    assert {layer.id for layer in store.layers()} == {step.id for step in chain("(run (shell a))").steps}
    assert str(heard.of(Note)).count("the layer is saved, but not in the index yet: cannot open the index") == 2
    assert drafts(store) == []


def test_an_index_locked_by_another_process_fails_no_build(
    store: Store, chain: ChainMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("obuild.builder.chain.INDEX_WAIT", 0.1)
    build(store, chain(""))
    with sqlite3.connect(store.state / "db/db.sqlite", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        _, heard = build(store, chain("(run (shell a))"))
        assert "not in the index yet: the store's index: database is locked" in str(heard.of(Note))
        with pytest.raises(StoreError) as caught, Index(store, wait=0.1) as index:
            index.count()
        assert caught.value.hint == "another process is writing to it; try again when that has finished"
        other.execute("ROLLBACK")
    with Index(store) as index:
        assert index.count() == 2
