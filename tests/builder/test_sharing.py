"""Builds that share layers through remotes, which are folders here. Executors are fakes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from obuild import spec
from obuild.bases import catalog, making
from obuild.builder import sharing
from obuild.builder.engine import Engine
from obuild.builder.sharing import Wish
from obuild.errors import ObuildError, StepFailed
from obuild.events import Done, Hit, InRemote, Note, Output, PhaseStarted, Saved
from obuild.executors.settings import Settings
from obuild.plan.keys import LayerId
from obuild.plan.steps import Base
from obuild.remotes import bases, trust
from obuild.remotes.all import Access, open_remote
from obuild.remotes.protocol import Remote
from obuild.store.layers import Store
from tests.support.fakes import FakeExecutor, Heard, Run
from tests.support.remotes import Watched

OPS = '(run (shell "one")) (run (shell "two")) (run (shell "three"))'


class Host:
    """A store of its own, with the same base image as the others or none, that builds with the remote `name`."""

    def __init__(self, folder: Path, base: Path | None, name: str) -> None:
        self.folder, self.name = folder, name
        self.store = Store.open(folder / "store")
        if base:
            (self.store.base_image / "tiny.qcow2").write_bytes(base.read_bytes())
        self.heard = Heard()

    def build(self, ops: str = OPS, **wish: Any) -> LayerId:
        """Build, and return the id of the result; `tags` and `jobs` are of the engine, others of the wish."""
        self.heard.clear()
        stage = spec.parse(f"((from {wish.pop('base', 'tiny')}) {ops})".encode())
        jobs, tags = wish.pop("jobs", 1), wish.pop("tags", ())
        engine = Engine(self.folder, self.store, Settings(accel="tcg"), self.heard, jobs=jobs, tags=tags)
        engine.remotes = Wish(wish.pop("names", (self.name,)), Access({}), **wish)
        return engine.build(stage)

    @property
    def notes(self) -> list[str]:
        return [note.text for note in self.heard.of(Note)]


@pytest.fixture
def hosts(tmp_path: Path, qcow2_disk: Path) -> Callable[[str], Host]:
    """Makes hosts that share one remote."""

    def make(name: str) -> Host:
        (tmp_path / name).mkdir()
        return Host(tmp_path / name, None if name == "empty" else qcow2_disk, f"dir:{tmp_path / 'remote'}")

    return make


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[Watched]:
    """The remotes that builds open, in order: they note what is asked of them."""
    opened: list[Watched] = []
    real = open_remote

    @contextmanager
    def watching(name: str, access: Access) -> Iterator[Remote]:
        with real(name, access) as remote:
            opened.append(Watched(remote))
            yield opened[-1]

    monkeypatch.setattr(sharing, "open_remote", watching)
    return opened


def writes(number: int) -> Callable[[Run], int]:
    """A step that writes to its disk, and prints its text."""

    def act(run: Run) -> int:
        write = f"write -q -P {number} {number * 65536} 64k"
        subprocess.run(["qemu-io", "-f", "qcow2", "-c", write, run.draft.image], check=True)
        run.output(f"{run.command.argv[-1]}\n".encode())
        return 0

    return act


@pytest.fixture
def steps(executor: FakeExecutor) -> FakeExecutor:
    executor.script = {"one": writes(1), "two": writes(2), "three": writes(3)}
    return executor


def test_what_one_host_makes_another_need_not(
    hosts: Callable[[str], Host], steps: FakeExecutor, watched: list[Watched]
) -> None:
    first, second = hosts("first"), hosts("second")
    last = first.build()
    assert len(first.heard.of(Saved)) == 4
    steps.seen.clear()
    assert second.build() == last
    assert steps.seen == []
    assert second.store.ids() == [], "nothing here needs a layer"
    assert [each.id for each in second.heard.of(InRemote)] == [each.id for each in first.heard.of(Saved)]
    assert [each.data for each in second.heard.of(Output)] == [b"three\n"], "only the result's log is read"
    assert watched[1].calls.count("manifests") == 1
    assert len(watched[1].read) == 2, "a config and a log"


def test_only_the_layers_that_a_new_step_needs_are_fetched(
    hosts: Callable[[str], Host], steps: FakeExecutor
) -> None:
    first, second = hosts("first"), hosts("second")
    first.build()
    steps.seen.clear()
    second.build('(run (shell "one")) (run (shell "two")) (run (shell "new"))')
    assert [each for each in steps.seen if each not in ("open", "sealed")] == ["new"]
    assert len(second.heard.of(Hit)) == 2
    phases = [each for each in second.heard.of(PhaseStarted) if each.phase == "fetching"]
    assert [each.subject for each in phases] == [second.name] * 2
    assert len(second.heard.of(Saved)) == 2, "the base image is here: it is imported, not fetched"


@pytest.mark.parametrize("wish", [{"whole": True}, {"tags": ("web",)}])
def test_the_result_is_fetched_if_somebody_wants_it(
    hosts: Callable[[str], Host], steps: FakeExecutor, wish: dict[str, Any]
) -> None:
    first, second = hosts("first"), hosts("second")
    last = first.build()
    steps.seen.clear()
    assert second.build(**wish) == last
    assert steps.seen == []
    assert second.store.find(last)
    log = second.store.layer(last).log
    assert log.read_bytes() == b"three\n"


def test_a_cached_build_asks_nothing(
    hosts: Callable[[str], Host], steps: FakeExecutor, watched: list[Watched]
) -> None:
    host = hosts("host")
    host.build()
    watched.clear()
    host.build()
    assert watched == []


@pytest.mark.parametrize(("mode", "made"), [("read", 0), ("write", 4)])
def test_a_remote_is_only_read_or_only_written(
    hosts: Callable[[str], Host], steps: FakeExecutor, mode: str, made: int
) -> None:
    first, second, third = hosts("first"), hosts("second"), hosts("third")
    first.build(read=mode == "read", write=mode == "write")
    second.build(write=False)
    assert len(second.heard.of(Saved)) == 4 - made
    third.build(read=False)
    assert len(third.heard.of(Saved)) == 4


def test_a_second_remote_has_what_the_first_one_lacks(hosts: Callable[[str], Host], steps: FakeExecutor) -> None:
    first, second = hosts("first"), hosts("second")
    first.build()
    empty = f"dir:{second.folder / 'empty'}"
    second.build(names=(empty, first.name))
    assert {each.remote for each in second.heard.of(InRemote)} == {first.name}


def test_inner_builds_are_fetched_for_what_is_copied_from_them(
    hosts: Callable[[str], Host], steps: FakeExecutor
) -> None:
    steps.files = {"out": b"x"}
    ops = '(build dev ((from tiny) (run (shell "one")))) (from tiny) (copy (from (build dev)) (src /out) (dst /o))'
    first, second = hosts("first"), hosts("second")
    for host in (first, second):
        stage = spec.parse(f"({ops})".encode())
        engine = Engine(host.folder, host.store, Settings(accel="tcg"), host.heard, jobs=2)
        engine.remotes = Wish((host.name,), Access({}))
        engine.build(stage)
    assert "one" not in [each.data.decode().strip() for each in second.heard.of(Output)]
    assert len(second.heard.of(Saved)) == 1, "the base; the rest came from the remote"


class TestFailures:
    """A remote that fails never fails a build."""

    def test_a_remote_that_cannot_be_used_is_left_alone(
        self, hosts: Callable[[str], Host], steps: FakeExecutor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host = hosts("host")
        broken = host.folder / "broken"
        broken.mkdir()
        (broken / "oci-layout").write_text("{}")
        (broken / "index.json").write_text("no JSON")
        host.build(names=(f"dir:{broken}",))
        assert len(host.heard.of(Saved)) == 4
        (note,) = [note for note in host.notes if "damaged" in note]
        assert note.endswith(f"this build goes on without dir:{broken}")

    def test_a_required_one_fails_the_build(self, hosts: Callable[[str], Host], steps: FakeExecutor) -> None:
        host = hosts("host")
        broken = host.folder / "broken"
        broken.mkdir()
        (broken / "index.json").write_text("no JSON")
        with pytest.raises(ObuildError, match="damaged"):
            host.build(names=(f"dir:{broken}",), required=True)
        assert host.store.ids() == []

    def test_a_remote_that_refuses_a_layer_costs_only_that(
        self, hosts: Callable[[str], Host], steps: FakeExecutor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host = hosts("host")

        def refuse(self: object, *args: object) -> None:
            raise ObuildError("no room there")

        monkeypatch.setattr("obuild.remotes.layout.Layout.put", refuse)
        host.build()
        assert len(host.heard.of(Saved)) == 4
        assert any(note.startswith("no room there; this build goes on") for note in host.notes)
        other = hosts("other")
        with pytest.raises(ObuildError, match="no room there"):
            other.build(required=True)
        assert len(other.heard.of(Saved)) == 4, "what was made stays"

    def test_a_damaged_layer_is_made_here(self, hosts: Callable[[str], Host], steps: FakeExecutor) -> None:
        first, second = hosts("first"), hosts("second")
        last = first.build()
        for blob in (Path(first.name.removeprefix("dir:")) / "blobs/sha256").iterdir():
            if b"schemaVersion" not in blob.read_bytes():
                blob.write_bytes(b"x" * blob.stat().st_size)
        assert second.build() == last
        assert len(second.heard.of(Saved)) == 4
        assert any("is damaged; this build goes on without that layer" in note for note in second.notes)

    def test_another_build_of_the_parent_is_not_built_upon(
        self, hosts: Callable[[str], Host], steps: FakeExecutor
    ) -> None:
        first, second = hosts("first"), hosts("second")
        first.build()
        steps.script = {**steps.script, "one": writes(9)}
        second.build('(run (shell "one"))', read=False)
        assert any("has another build of layer" in note for note in second.notes)
        second.build(whole=True)
        assert any("was built on another build of" in note for note in second.notes)
        assert len(second.heard.of(Saved)) == 2

    def test_layers_made_before_a_failed_step_are_sent(
        self, hosts: Callable[[str], Host], steps: FakeExecutor
    ) -> None:
        first, second = hosts("first"), hosts("second")
        steps.script = {**steps.script, "three": lambda run: 1}
        with pytest.raises(StepFailed):
            first.build()
        second.build('(run (shell "one")) (run (shell "two"))')
        assert len(second.heard.of(InRemote)) == 3

    def test_an_interrupted_build_does_not_wait_for_its_layers(
        self, hosts: Callable[[str], Host], steps: FakeExecutor
    ) -> None:
        def interrupt(run: Run) -> int:
            raise KeyboardInterrupt

        host = hosts("host")
        steps.script = {**steps.script, "three": interrupt}
        with pytest.raises(KeyboardInterrupt):
            host.build()
        assert not host.heard.of(Done)
        assert not [each for each in host.heard.of(PhaseStarted) if each.phase == "sending"]


def test_only_signed_layers_are_taken_if_keys_are_trusted(
    hosts: Callable[[str], Host], steps: FakeExecutor, tmp_path: Path
) -> None:
    public = trust.public_key(trust.make(tmp_path / "our.key"))
    first, second, third = hosts("first"), hosts("second"), hosts("third")
    first.build('(run (shell "one"))')
    second.build('(run (shell "one"))', trust=(public,), write=False)
    assert len(second.heard.of(Saved)) == 2
    assert any(note.startswith("2 layers in") and "no signature" in note for note in second.notes)
    first.build(sign=trust.private_key(tmp_path / "our.key"))
    third.build(trust=(public,))
    assert len(third.heard.of(InRemote)) == 4, "those below were signed, too"


def test_the_first_use_of_a_remote_says_that_it_is_believed(
    hosts: Callable[[str], Host], steps: FakeExecutor
) -> None:
    first, second = hosts("first"), hosts("second")
    first.build()
    second.build()
    assert any("believed without a signature" in note for note in second.notes)
    second.build()
    assert second.notes == []


class TestAHostWithoutTheBase:
    """Its store is empty: not even the base image is there."""

    def test_needs_nothing_if_all_is_made(self, hosts: Callable[[str], Host], steps: FakeExecutor) -> None:
        first, empty = hosts("first"), hosts("empty")
        last = first.build()
        steps.seen.clear()
        assert empty.build() == last
        assert steps.seen == []
        assert empty.store.ids() == []
        assert f"the base tiny is that of {empty.name}" in empty.notes

    def test_fetches_the_base_for_a_new_step(
        self, hosts: Callable[[str], Host], steps: FakeExecutor, tmp_path: Path
    ) -> None:
        first, empty = hosts("first"), hosts("empty")
        first.build('(run (shell "one"))')
        steps.seen.clear()
        last = empty.build('(run (shell "two"))')
        assert steps.seen == ["open", "two", "sealed"]
        assert len(empty.store.ids()) == 2
        assert first.build('(run (shell "two"))') == last
        assert steps.seen == ["open", "two", "sealed"], "the other host has it from the remote"

    def test_sends_a_base_that_it_has_to_make(
        self, hosts: Callable[[str], Host], steps: FakeExecutor, qcow2_disk: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        empty = hosts("empty")
        find = making.find

        def make(store: Store, reference: str, **options: Any) -> Base:
            (store.base_image / "tiny.qcow2").write_bytes(qcow2_disk.read_bytes())
            return find(store, reference, **options)

        monkeypatch.setattr(making, "find", make)
        empty.build()
        with open_remote(empty.name, Access({})) as remote:
            assert bases.find(remote, "tiny")

    def test_may_pin_the_base(self, hosts: Callable[[str], Host], steps: FakeExecutor) -> None:
        first, empty = hosts("first"), hosts("empty")
        last = first.build()
        image = catalog.look(first.store, "tiny")
        assert image
        assert empty.build(base=f"tiny@sha256:{image.digest}") == last
        with pytest.raises(ObuildError, match="tiny"):
            empty.build(base=f"tiny@sha256:{'0' * 64}")

    def test_believes_only_signed_names_if_told_so(
        self, hosts: Callable[[str], Host], steps: FakeExecutor, tmp_path: Path
    ) -> None:
        key = tmp_path / "our.key"
        public = trust.public_key(trust.make(key))
        first, empty = hosts("first"), hosts("empty")
        first.build()
        with pytest.raises(ObuildError, match="unknown base image 'tiny'"):
            empty.build(trust=(public,))
        assert any("the tag base/tiny in" in note and "is not signed" in note for note in empty.notes)
        first.build(OPS.replace("three", "one"), sign=trust.private_key(key))
        empty.build(OPS.replace("three", "one"), trust=(public,))
        assert empty.store.ids() == []

    def test_says_so_if_the_base_is_lost(
        self, hosts: Callable[[str], Host], steps: FakeExecutor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, empty = hosts("first"), hosts("empty")
        first.build('(run (shell "one"))')

        def lost(*args: object, **options: object) -> None:
            raise ObuildError("the remote is gone")

        monkeypatch.setattr("obuild.remotes.pull.fetch", lost)
        with pytest.raises(ObuildError, match="base image tiny is not here, and its layer could not be fetched"):
            empty.build('(run (shell "two"))')
        assert empty.store.ids() == []
