"""What many tests begin with: a store, a small disk, a base image made of it."""

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

# A shell starts what runs in its background deaf to Ctrl-C, and so would be what tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, so that no process is left alone with it at the end."""
    items.sort(key=lambda item: ("test_debian" not in item.nodeid, item.get_closest_marker("vm") is None))


@pytest.fixture
def enterable() -> Iterator[Path]:
    """A folder that any user can enter, as pytest's own cannot be."""
    with tempfile.TemporaryDirectory(prefix="obuild-test-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store.open(tmp_path / "store")


@pytest.fixture(scope="session")
def raw_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw disk that boots and powers itself off. Not to be written to."""
    path = tmp_path_factory.mktemp("disk") / "disk.img"
    path.write_bytes(boot_disk("hello from the boot sector", POWER_OFF))
    return path


@pytest.fixture(scope="session")
def qcow2_disk(raw_disk: Path) -> Path:
    """The same as qcow2. Not to be written to."""
    path = raw_disk.with_name("disk.qcow2")
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw_disk, path], check=True)
    return path


@pytest.fixture
def tiny(store: Store, qcow2_disk: Path) -> Path:
    """The file of a base image called `tiny` in the store."""
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
    """Scripted, for whoever asks for machines."""
    guests = ScriptedGuests(FakeExecutor())
    monkeypatch.setitem(EXECUTORS, "qemu", guests)
    return guests


@pytest.fixture
def executor(guests: ScriptedGuests) -> FakeExecutor:
    """What runs the steps of all these guests."""
    return guests.executor
