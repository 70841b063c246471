"""The promises of executors/protocol.py. The fake must keep them, too, or tests that use it would mean little.

A new executor gets a row in EXECUTORS and a function that makes its place.
"""

from __future__ import annotations

import os
import shutil
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest

from obuild import spec
from obuild.bases import making
from obuild.builder.engine import Engine
from obuild.builder.provision import Machines
from obuild.errors import MachineError
from obuild.events import SILENT
from obuild.executors.native import requirements
from obuild.executors.protocol import Executor, OpenExecutor, Outcome, Session
from obuild.executors.settings import Settings
from obuild.host import qemu_img
from obuild.plan import tree
from obuild.plan.keys import LayerId
from obuild.plan.steps import Command, Extract, Graft, Step, Transfer
from obuild.spec import Cache, Secret, UnixUser
from obuild.store.layers import Store
from tests.support.fake_shell import Shell
from tests.support.fakes import POWER_OFF, FakeExecutor, boot_disk
from tests.support.program import base_images, booted_store, new_store

ROOT = UnixUser(0, 0)


def command(text: str, **more: object) -> Command:
    """Return a shell command that runs as root in /."""
    given = {"cwd": "/", "env": (), "user": ROOT, "network": False, **more}
    return Command(("sh", "-c", text), **given)  # type: ignore[arg-type]


@dataclass
class Place:
    """A store with a base, and an executor for it. `reach` returns a command that connects to a port of ours."""

    store: Store
    start: OpenExecutor
    base: LayerId
    reach: Callable[[int], str]
    executor: Executor = field(init=False)  # with one session at a time

    @contextmanager
    def layer(self, parent: LayerId | None = None, *, network: bool = False) -> Iterator[tuple[LayerId, Session]]:
        """Make a new layer; yield its id, and the session that makes it."""
        text = command(f"unlike any other: {uuid.uuid4()}", network=network)
        step = Step(parent or self.base, text, ("test",))
        with (
            self.store.use(parent or self.base),
            self.store.claim(step.id),
            self.store.draft(step) as draft,
            self.executor.open(draft, network=network) as session,
        ):
            yield step.id, session

    @contextmanager
    def scratch(self, layer: LayerId) -> Iterator[Session]:
        """Open a session on a layer; nothing of it is kept."""
        with self.store.scratch(layer) as draft, self.executor.open(draft, network=False) as session:
            yield session


@contextmanager
def fake(root: Path, run: Path) -> Iterator[Place]:
    store = Store.open(root)
    (store.base_image / "tiny.img").write_bytes(boot_disk("", POWER_OFF))
    base = Engine(Path(), store, Settings(), print).build(spec.parse(b"((from tiny))"))
    executor = FakeExecutor(Shell())
    yield Place(store, lambda: nullcontext(executor), base, lambda port: "reach")


@contextmanager
def qemu(root: Path, run: Path, vm: str) -> Iterator[Place]:
    store = Store.open(booted_store(root, base_images("micro"), run))
    settings = Settings(vm=vm)
    base = Engine(Path(), store, settings, print).build(spec.parse(b"((from micro))"))
    start = Machines(store, settings).of(making.find(store, "micro", say=print), SILENT)
    get = "exec 3<>/dev/tcp/10.0.2.2/{}; cat <&3"
    yield Place(store, start, base, lambda port: f"timeout 20 bash -c '{get.format(port)}' 2>&1")


@contextmanager
def native(root: Path, run: Path, runtime: str) -> Iterator[Place]:
    if os.geteuid() != 0:
        pytest.skip("native steps need root")
    if not shutil.which(runtime):
        pytest.skip(f"{runtime} is not installed")
    store = Store.open(new_store(root, base_images("micro")))
    base = Engine(Path(), store, Settings(), print, executor="native").build(spec.parse(b"((from micro))"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requirements, "RUNTIMES", (runtime,))
        start = Machines(store, Settings(), "native").of(making.find(store, "micro", say=print), SILENT)
    yield Place(
        store, start, base, lambda port: f"timeout 20 bash -c 'exec 3<>/dev/tcp/127.0.0.1/{port}; cat <&3' 2>&1"
    )


#: Each takes a new folder for its store, and the folder of the test run.
EXECUTORS: dict[str, Callable[[Path, Path], AbstractContextManager[Place]]] = {
    "fake": fake,
    "native": partial(native, runtime="runc"),
    "native-crun": partial(native, runtime="crun"),
    "qemu-boot": partial(qemu, vm="boot"),
    "qemu-warm": partial(qemu, vm="warm"),
}
#: Guests take long, and tests/vm has most of it for them.
MARKS = {name: [pytest.mark.vm, pytest.mark.long] for name in ("native-crun", "qemu-boot", "qemu-warm")}
PARAMS = [pytest.param(name, marks=MARKS.get(name, [])) for name in EXECUTORS]


@pytest.fixture(scope="module", params=PARAMS)
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, whole_run: Path
) -> Iterator[Place]:
    make = EXECUTORS[request.param]
    with make(tmp_path_factory.mktemp("place") / "store", whole_run) as place, place.start() as executor:
        place.executor = executor
        yield place


@pytest.fixture(scope="module")
def shared(place: Place) -> Iterator[Session]:
    """A session that several tests use one after the other."""
    other = replace(place)
    with place.start() as other.executor, other.layer() as (_, session):
        yield session


def run(
    session: Session,
    what: Command | str,
    caches: Sequence[Path] = (),
    secrets: Mapping[str, bytes] | None = None,
) -> tuple[str, Outcome]:
    """Run a command; return its output and its outcome."""
    said = bytearray()
    what = command(what) if isinstance(what, str) else what
    outcome = session.run(what, caches, secrets or {}, said.extend)
    return said.decode(), outcome


def said(session: Session, text: str) -> str:
    """Run a command that must succeed; return its output."""
    text, outcome = run(session, text)
    assert outcome == Outcome(0)
    return text


# -- a command


def test_a_command_runs_as_its_user_in_its_folder(shared: Session) -> None:
    where = {"cwd": "/made/for it", "env": (("A", "1  2"),), "user": UnixUser(12, 34)}
    text, outcome = run(shared, command("pwd; id -u; id -g; printenv A", **where))
    assert (text, outcome.status) == ("/made/for it\n12\n34\n1  2\n", 0)


def test_our_own_environment_does_not_reach_a_command(shared: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", "x")
    assert run(shared, "printenv OURS") == ("", Outcome(1))


def test_output_arrives_in_order(shared: Session) -> None:
    assert said(shared, "echo one; echo two >&2; echo three; echo four >&2") == "one\ntwo\nthree\nfour\n"


def test_a_failing_command_returns_its_status(shared: Session) -> None:
    assert run(shared, "echo x; exit 7; echo y") == ("x\n", Outcome(7))
    assert said(shared, "echo the session goes on") == "the session goes on\n"


@pytest.mark.parametrize("network", [True, False])
def test_a_command_reaches_the_network_only_if_it_is_open(place: Place, network: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):  # the test is over, and nobody has connected
                client, _ = server.accept()
                with client:
                    client.sendall(b"reached\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with place.layer(network=network) as (_, session):
            text, outcome = run(session, command(place.reach(server.getsockname()[1]), network=network))
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        assert ("reached" in text) is network
        assert (outcome.status == 0) is network


# -- secrets and caches


def test_a_secret_exists_only_while_its_command_runs(place: Place) -> None:
    secret = command("cat /run/deep/secret", secrets=(Secret("s", "/run/deep/secret"),))
    with place.layer() as (id, session):
        assert run(session, secret, secrets={"s": b"value\n"}) == ("value\n", Outcome(0))
        assert run(session, "cat /run/deep/secret 2>/dev/null")[1].status == 1
    with place.scratch(id) as session:
        assert run(session, "cat /run/deep/secret 2>/dev/null")[1].status == 1


def test_caches_come_and_go_with_the_command(shared: Session, tmp_path: Path) -> None:
    two = (Cache("one", "/deep/one"), Cache("two", "/deep/two"))
    files = [tmp_path / "one.tar", tmp_path / "two.tar"]
    text = "echo first >/deep/one/file; echo second >/deep/two/file; exit 3"
    _, outcome = run(shared, command(text, caches=two), files)
    assert (outcome.status, len(outcome.caches)) == (3, 2)
    assert not any(file.exists() for file in files)  # committing the archives is the caller's job
    assert run(shared, "cat /deep/one/file 2>/dev/null")[1].status == 1
    for new, file in zip(outcome.caches, reversed(files), strict=True):
        new.rename(file)
    text, outcome = run(shared, command("cat /deep/one/file; cat /deep/two/file", caches=two), files)
    assert text == "second\nfirst\n"
    assert all(archive.exists() for archive in outcome.caches)


# -- files in and out


def test_files_are_sent_taken_and_grafted(place: Place, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content\n")
    with place.layer() as (id, session):
        session.send(Transfer(tree.walk(tmp_path, ["file"]), "/sent/to", ROOT))
        assert said(session, "cat /sent/to/file") == "content\n"
    archive = tmp_path / "taken.tar"
    extract = Extract("dev", ("/sent/to/file",), (), None, ROOT)
    with place.scratch(id) as session:
        session.take(extract, archive)
        with pytest.raises(MachineError, match="No such file"):
            session.take(Extract("dev", ("/sent/to/nothing",), (), None, ROOT), tmp_path / "nothing.tar")
    with place.layer() as (_, session):
        session.graft(Graft(extract, id, (), "/grafted"), archive)
        assert said(session, "cat /grafted/file") == "content\n"


# -- drafts and layers


def test_a_sealed_layer_can_have_any_number_of_children(place: Place) -> None:
    with place.layer() as (parent, session):
        said(session, "echo parent >/file")
    children = []
    for name in ("one", "two"):
        with place.layer(parent) as (child, session):
            assert said(session, "cat /file") == "parent\n"
            said(session, f"echo {name} >/file")
            children.append(child)
    with place.scratch(children[0]) as session:
        assert said(session, "cat /file") == "one\n"


def test_an_exception_in_a_session_leaves_nothing(place: Place) -> None:
    class Stop(Exception):
        pass

    with place.layer() as (parent, session):
        said(session, "echo parent >/file")
    with suppress(Stop), place.layer(parent) as (id, session):
        said(session, "echo child >/file")
        raise Stop
    assert place.store.find(id) is None
    with place.layer(parent) as (_, session):
        assert said(session, "cat /file") == "parent\n"


def test_a_scratch_draft_leaves_nothing(place: Place) -> None:
    with place.layer() as (id, session):
        said(session, "echo layer >/file")
    for _ in range(2):
        with place.scratch(id) as session:
            assert said(session, "cat /file") == "layer\n"
            said(session, "echo scratch >/file")


def test_a_finished_scratch_draft_has_a_complete_image(place: Place) -> None:
    with place.layer() as (id, session):
        said(session, "echo layer >/file")
    with place.store.scratch(id) as draft, place.executor.open(draft, network=False) as session:
        said(session, "echo cleaned >/file")
        session.finish()
        qemu_img.check(draft.image)
        folder = draft.path
    assert not folder.exists()
    with place.scratch(id) as session:
        assert said(session, "cat /file") == "layer\n"
