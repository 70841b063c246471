"""Fixtures that many tests share: a store, a small disk, a base image made from it."""

from __future__ import annotations

import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from obuild import spec
from obuild.bases import making
from obuild.executors.all import EXECUTORS
from obuild.plan.planner import plan
from obuild.plan.steps import Chain
from obuild.store.layers import Store
from tests.support.fakes import POWER_OFF, FakeExecutor, ScriptedGuests, boot_disk

# A shell makes its background processes ignore Ctrl-C; the processes that tests start and interrupt would inherit
# that.
signal.signal(signal.SIGINT, signal.default_int_handler)


#: The tests that take longest, the slowest first: each worker takes a file at a time, in this order.
SLOWEST = (
    *("tests/vm/test_left_behind", "tests/vm/test_build", "tests/vm/test_debian", "tests/vm/test_warm"),
    *("tests/executors/test_conformance", "tests/vm/", "tests/store/test_crashes", "tests/store/test_strangers"),
    *("tests/cli/test_main", "tests/store/"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slowest tests first, so that no worker is left alone with one at the end."""

    def place(item: pytest.Item) -> int:
        return next((at for at, name in enumerate(SLOWEST) if item.nodeid.startswith(name)), len(SLOWEST))

    items.sort(key=place)


@pytest.fixture
def enterable() -> Iterator[Path]:
    """A folder that any user can enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="obuild-test-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture(scope="session")
def whole_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of this test run, which all its processes share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if hasattr(request.config, "workerinput") else folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store.open(tmp_path / "store")


@pytest.fixture(scope="session")
def raw_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw disk that boots and powers itself off. Read-only."""
    path = tmp_path_factory.mktemp("disk") / "disk.img"
    path.write_bytes(boot_disk("hello from the boot sector", POWER_OFF))
    return path


@pytest.fixture(scope="session")
def qcow2_disk(raw_disk: Path) -> Path:
    """The same as qcow2. Read-only."""
    path = raw_disk.with_name("disk.qcow2")
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw_disk, path], check=True)
    return path


@pytest.fixture
def tiny(store: Store, qcow2_disk: Path) -> Path:
    """The file of the base image `tiny` in the store."""
    path = store.base_image / "tiny.qcow2"
    path.write_bytes(qcow2_disk.read_bytes())
    return path


@pytest.fixture
def chain(store: Store, tiny: Path, tmp_path: Path) -> Callable[[str], Chain]:
    """Plans ops on the base `tiny`; copies come from the folder `source`."""
    source = tmp_path / "source"
    source.mkdir()

    def make(ops: str) -> Chain:
        stage = spec.parse(f"((from tiny) {ops})".encode())
        return plan(stage, source=source, bases={"tiny": making.find(store, "tiny", say=print)}).chain()

    return make


@pytest.fixture
def guests(monkeypatch: pytest.MonkeyPatch) -> ScriptedGuests:
    """A scripted executor that builds use."""
    guests = ScriptedGuests(FakeExecutor())
    monkeypatch.setitem(EXECUTORS, "qemu", guests)
    return guests


@pytest.fixture
def executor(guests: ScriptedGuests) -> FakeExecutor:
    """The executor of these guests, which runs all steps."""
    return guests.executor
