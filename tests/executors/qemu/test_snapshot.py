"""Machines that outlast a step: the commands to QEMU, the files, and real machines that continue."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest

from obuild.errors import MachineError
from obuild.executors.qemu import machine, snapshot
from obuild.executors.qemu import memory as ram
from obuild.executors.qemu.agent import Resident
from obuild.executors.qemu.argv import Memory
from obuild.executors.qemu.machine import Machine
from obuild.executors.qemu.shape import Kernel, Shape
from obuild.executors.qemu.snapshot import HEAVY, Lasting
from obuild.host import process, qemu_img
from obuild.host.process import CancelScope
from obuild.plan.keys import LayerId
from obuild.store.layers import Draft
from obuild.store.warm import State
from tests.support.fakes import boot_disk

SHAPE = Shape(accel="tcg", cpus=1, memory=32 << 20, boot_time=60.0, warm=True)

BASE, ONE, TWO, THREE = (LayerId(digit * 64) for digit in "b123")


@dataclass
class FakeQmp:
    """Records commands; `events` are the ones to return."""

    told: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    events: list[dict[str, Any] | None] = field(default_factory=list)

    def execute(self, command: str, arguments: dict[str, Any] | None = None) -> None:
        self.told.append((command, arguments or {}))
        if command == "xen-save-devices-state" and arguments:
            Path(arguments["filename"]).write_text("devices")

    def wait_event(self, *names: str, timeout: float) -> dict[str, Any] | None:
        return self.events.pop(0)


@dataclass
class FakeMachine:
    """What a Lasting needs of a machine."""

    shape: Shape = SHAPE
    qmp: FakeQmp = field(default_factory=FakeQmp)
    network: list[bool] = field(default_factory=list)
    watched: bool = False
    child: Any = field(default_factory=lambda: subprocess.Popen[bytes].__new__(subprocess.Popen))

    def switch(self, *, network: bool) -> None:
        self.network.append(network)


@dataclass
class FakeShell:
    """Gives scripted answers."""

    why: str = ""
    can: bool = True
    told: list[dict[str, object]] = field(default_factory=list)

    def freeze(self) -> str:
        return self.why

    def thaw(self, **told: object) -> bool:
        self.told.append(told)
        return self.can


@dataclass
class Place:
    """A folder with the layout of a store."""

    root: Path
    log: BinaryIO

    def layer(self, draft: Draft) -> None:
        """Commit a draft."""
        draft.path.rename(self.root / "result" / draft.id)

    def image(self, id: LayerId) -> Path:
        return self.root / "result" / id / "rootfs" / "image.qcow2"

    def draft(self, id: LayerId, parent: LayerId) -> Draft:
        path = self.root / "result-tmp" / id
        (path / "rootfs").mkdir(parents=True)
        return Draft(id, path, self.log, parent, f"../../../result/{parent}/rootfs/image.qcow2")

    def folder(self, name: str) -> Path:
        """Make a folder for a machine or a state."""
        path = self.root / "warm-tmp" / name
        path.mkdir(parents=True)
        return path


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """A place with a base of 32 MiB."""
    with (tmp_path / "log").open("wb") as log:
        place = Place(tmp_path / "store", log)
        place.image(BASE).parent.mkdir(parents=True)
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", place.image(BASE), "32M"], check=True)
        yield place


@pytest.fixture
def live(place: Place) -> Lasting:
    """A Lasting without a machine."""
    made = Lasting(cast(Machine, FakeMachine()), place.folder("0-machine"), None)
    assert cast(FakeMachine, made.machine).watched
    made.shell = cast(Resident, FakeShell())
    return made


def qmp(live: Lasting) -> FakeQmp:
    return cast(FakeQmp, live.machine.qmp)


def shell(live: Lasting) -> FakeShell:
    return cast(FakeShell, live.shell)


# -- from step to step


def test_a_frozen_guest_is_paused(live: Lasting) -> None:
    assert live.freeze() == ""
    assert qmp(live).told == [("stop", {})]


def test_a_guest_that_needs_a_boot_is_not_paused(live: Lasting) -> None:
    shell(live).why = "so"
    assert live.freeze() == "so"
    assert qmp(live).told == []


def test_sealing_puts_a_new_disk_on_the_draft(live: Lasting, place: Place) -> None:
    draft = place.draft(ONE, BASE)
    draft.lay()
    live.seal(draft)
    path = live.folder / "disks" / "1.qcow2"
    assert qemu_img.backing_file(path) == f"../../../result/{ONE}/rootfs/image.qcow2"
    assert qemu_img.virtual_size(path) == qemu_img.virtual_size(draft.image) == 32 << 20
    options = {"cache": {"no-flush": True}, "discard": "unmap"}
    assert qmp(live).told == [
        ("blockdev-add", {"driver": "file", "filename": str(path), "node-name": "file1", **options}),
        (
            "blockdev-add",
            {"driver": "qcow2", "file": "file1", "node-name": "disk1", "backing": None, **options},
        ),
        ("blockdev-snapshot", {"node": "disk0", "overlay": "disk1"}),
    ]
    assert live.layer == ONE
    place.layer(draft)
    qemu_img.check(path)  # needs its backing file


def test_the_next_draft_takes_over_that_disk(live: Lasting, place: Place) -> None:
    first, second = place.draft(ONE, BASE), place.draft(TWO, ONE)
    first.lay()
    live.seal(first)
    place.layer(first)
    assert live.go_on(second, network=True)
    assert live.layer is None
    assert second.image.samefile(live.folder / "disks" / "1.qcow2")
    assert second.image.stat().st_nlink == 2
    assert qemu_img.backing_file(second.image) == second.below
    qmp(live).told.clear()
    live.seal(second)
    assert second.image.stat().st_nlink == 1
    assert [path.name for path in (live.folder / "disks").iterdir()] == ["2.qcow2"]
    assert qmp(live).told[-1] == ("blockdev-snapshot", {"node": "disk1", "overlay": "disk2"})
    assert live.layer == TWO


@pytest.mark.parametrize("network", [True, False])
@pytest.mark.parametrize("can", [True, False])
def test_a_guest_continues_with_the_network_of_its_step(live: Lasting, network: bool, can: bool) -> None:
    shell(live).can = can
    assert live.go_on(None, network=network) is can
    assert cast(FakeMachine, live.machine).network == [network]
    assert qmp(live).told == [("cont", {})]
    assert shell(live).told[0]["network"] is network


def test_a_resumed_guest_gets_its_own_seed(live: Lasting, place: Place) -> None:
    for _ in range(2):
        live.go_on(None, network=False)
    seeds = {told["seed"] for told in shell(live).told}
    assert len(seeds) == 2
    assert all(re.fullmatch(r"[0-9a-f]{64}", str(seed)) for seed in seeds)


def test_a_guest_that_continues_gets_no_seed(live: Lasting, place: Place) -> None:
    live.freeze()
    (live.folder / "disks").mkdir(exist_ok=True)
    (live.folder / "disks" / "0.qcow2").touch()
    live.go_on(place.draft(ONE, BASE), network=False)
    assert [told["seed"] for told in shell(live).told] == [""]


def test_a_machine_can_continue_only_on_the_layer_whose_disk_it_has(live: Lasting, place: Place) -> None:
    first, child, other = place.draft(ONE, BASE), place.draft(TWO, ONE), place.draft(THREE, BASE)
    first.lay()
    assert not live.stands_on(first)  # it is not frozen on the disk of a layer
    live.seal(first)
    assert live.stands_on(child)
    assert not live.stands_on(other)
    assert not live.stands_on(replace(child, below=f"../../../flat/{ONE}/image.qcow2"))
    live.go_on(child, network=False)
    assert not live.stands_on(child)


# -- saving


@dataclass
class FakeRam:
    """Memory with a given number of changed pages; what it writes says how it was called."""

    pages: int

    def changed(self) -> list[tuple[int, int]]:
        return [(7, 1), (100, self.pages - 1)]

    def write_delta(self, runs: Sequence[tuple[int, int]], path: Path) -> None:
        path.write_text(f"{runs}")

    def write_all(self, runs: Sequence[tuple[int, int]], file: Path | None, path: Path) -> None:
        path.write_text(f"{file and file.name} {runs}")


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch, live: Lasting) -> Callable[[int], FakeRam]:
    """Set how many pages of its memory have changed."""

    def differ(pages: int) -> FakeRam:
        memory = FakeRam(pages)

        def of(pid: int, file: Path | None, size: int) -> FakeRam:
            assert (pid, file, size) == (1234, live.file, SHAPE.ram)
            return memory

        monkeypatch.setattr(ram, "of", of)
        cast(FakeMachine, live.machine).child.pid = 1234
        return memory

    return differ


def files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text(errors="replace") for path in folder.iterdir()}


def test_the_memory_of_a_booted_machine_is_saved_whole(live: Lasting, pages: Callable[[int], FakeRam]) -> None:
    memory = pages(3)
    live.save(live.folder / "made")
    assert files(live.folder / "made") == {"ram": f"None {memory.changed()}", "device": "devices"}
    assert qmp(live).told == [
        ("xen-save-devices-state", {"filename": str(live.folder / "made" / "device"), "live": False})
    ]
    assert not live.heavy


def test_the_disk_writes_of_a_boot_are_saved_too(
    live: Lasting, place: Place, pages: Callable[[int], FakeRam]
) -> None:
    pages(3)
    draft = place.draft(ONE, BASE)
    draft.lay()
    live.save(live.folder / "made", draft.image)
    assert (live.folder / "made" / "disk.qcow2").read_bytes() == draft.image.read_bytes()


def test_a_resumed_machine_is_saved_as_a_delta(live: Lasting, pages: Callable[[int], FakeRam]) -> None:
    live.file = live.folder / "ram"
    live.file.write_text("memory")
    memory = pages(HEAVY // ram.PAGE)
    live.save(live.folder / "made")
    assert files(live.folder / "made") == {
        "ram": "memory",
        "delta": str(memory.changed()),
        "device": "devices",
    }
    assert (live.folder / "made" / "ram").samefile(live.file)
    assert not live.heavy


def test_if_much_has_changed_the_whole_memory_is_saved(live: Lasting, pages: Callable[[int], FakeRam]) -> None:
    live.file = live.folder / "ram"
    live.file.write_text("memory")
    memory = pages(HEAVY // ram.PAGE + 1)
    live.save(live.folder / "made")
    assert files(live.folder / "made") == {"ram": f"ram {memory.changed()}", "device": "devices"}
    assert live.heavy
    pages(2)
    live.save(live.folder / "again")
    assert not live.heavy


def test_an_existing_folder_is_not_written_to(live: Lasting, pages: Callable[[int], FakeRam]) -> None:
    pages(3)
    (live.folder / "made").mkdir()
    with pytest.raises(FileExistsError):
        live.save(live.folder / "made")


# -- loading


def load(fake: FakeMachine, device: Path) -> None:
    snapshot._load(cast(Machine, fake), device)


def test_loading_waits_for_the_state_of_the_devices() -> None:
    statuses = ("setup", "active", "completed", "failed")
    fake = FakeMachine(qmp=FakeQmp(events=[{"data": {"status": status}} for status in statuses]))
    load(fake, Path("/a b/it's $x"))
    assert len(fake.qmp.events) == 1
    assert fake.qmp.told[-1] == ("migrate-incoming", {"uri": """exec:exec cat '/a b/it'"'"'s $x'"""})


@pytest.mark.parametrize("last", [None, {"data": {"status": "failed"}}])
def test_a_state_that_qemu_refuses_is_an_error(last: dict[str, Any] | None) -> None:
    fake = FakeMachine(qmp=FakeQmp(events=[{"data": {"status": "setup"}}, last]))
    with pytest.raises(MachineError, match="does not accept the saved state"):
        load(fake, Path("/device"))


# -- identities

CPUINFO = """processor\t: 0
vendor_id\t: {vendor}
model name\t: A CPU
cpu MHz\t\t: {mhz}
flags\t\t: fpu {flag}

processor\t: 1
vendor_id\t: {vendor}
cpu MHz\t\t: 1{mhz}
flags\t\t: fpu {flag}

"""


@dataclass
class FakeHome:
    """The scripts of a guest."""

    text: bytes = b"start"

    def start(self, mark: str) -> bytes:
        return self.text + mark.encode()


@pytest.fixture
def qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """QEMU, as an ordinary file."""
    binary = tmp_path / "qemu-8"
    binary.write_text("QEMU 8")
    (tmp_path / "qemu").symlink_to(binary)
    monkeypatch.setattr(process, "require", lambda name: str(tmp_path / "qemu"))
    return tmp_path / "qemu"


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give the host such a CPU."""
    read = Path.read_text

    def be(vendor: str = "v", mhz: str = "1000.1", flag: str = "vmx") -> None:
        def fake(path: Path, *args: Any, **options: Any) -> str:
            if path == Path("/proc/cpuinfo"):
                return CPUINFO.format(vendor=vendor, mhz=mhz, flag=flag)
            return read(path, *args, **options)

        monkeypatch.setattr(Path, "read_text", fake)

    return be


def identity(shape: Shape, home: FakeHome | None = None) -> str:
    return snapshot.identity(shape, home or FakeHome())


@pytest.mark.usefixtures("qemu")
@pytest.mark.parametrize(
    "other",
    [
        SHAPE._replace(memory=64 << 20),
        SHAPE._replace(cpus=2),
        SHAPE._replace(accel="kvm"),
        SHAPE._replace(kernel=Kernel(Path("/k"), None, "quiet")),
    ],
)
def test_another_shape_has_another_identity(other: Shape) -> None:
    assert identity(SHAPE) == identity(SHAPE._replace())
    assert identity(other) != identity(SHAPE)


@pytest.mark.usefixtures("qemu")
def test_another_resident_shell_has_another_identity() -> None:
    assert identity(SHAPE, FakeHome(b"other")) != identity(SHAPE)


def test_another_qemu_has_another_identity(qemu: Path) -> None:
    before = identity(SHAPE)
    assert identity(SHAPE) == before
    with qemu.open("a") as file:
        file.write(".1")
    changed = identity(SHAPE)
    assert changed != before
    copy = qemu.with_name("qemu-9")
    shutil.copy2(qemu, copy)
    qemu.unlink()
    qemu.symlink_to(copy)
    assert identity(SHAPE) not in (before, changed)


@pytest.mark.usefixtures("qemu")
def test_the_hosts_cpu_counts_only_if_the_guest_sees_it(cpu: Callable[..., None]) -> None:
    kvm = SHAPE._replace(accel="kvm")
    found = []
    for about in ({}, {"mhz": "2000.2"}, {"vendor": "w"}, {"flag": "svm"}):
        cpu(**about)
        found.append((identity(SHAPE), identity(kvm)))
    assert len({tcg for tcg, _ in found}) == 1
    one, same, *others = [kvm for _, kvm in found]
    assert one == same
    assert len({one, *others}) == 3


# -- real machines

real = pytest.mark.skipif(
    not (shutil.which("qemu-system-x86_64") and shutil.which("setpriv")), reason="needs QEMU and setpriv"
)

#: Writes the alphabet to the serial console, again and again, slowly enough that QEMU keeps all of it. The next
#: letter is in its memory at 0x500.  movb $'a', 0x500; 1: mov 0x500, %al; out %al, %dx; inc %al; cmp $'z', %al;
#: jbe 2f; mov $'a', %al 2: mov %al, 0x500; mov $0x4000, %cx; 3: loop 3b; jmp 1b
ALPHABET = bytes.fromhex("c606000561 a00005 ee fec0 3c7a 7602 b061 a20005 b90040 e2fe ebea")
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture
def counting(place: Place, tmp_path: Path) -> Place:
    """A place with a base whose guest counts."""
    (tmp_path / "raw").write_bytes(boot_disk("", ALPHABET))
    qemu_img.import_image(qemu_img.inspect(tmp_path / "raw"), place.image(BASE))
    return place


def count(running: Machine) -> str:
    """Let a guest run until it has written something, and pause it; return what it has written."""
    read: dict[str, object] = {"device": "console", "size": 1 << 16}
    running.qmp.execute("cont")
    said = ""
    while not said:
        running.pause(0.01)
        said = running.qmp.execute("ringbuf-read", read)
    running.qmp.execute("stop")
    return said + str(running.qmp.execute("ringbuf-read", read))


def after(said: str) -> str:
    """Return the letter that comes next."""
    return LETTERS[(LETTERS.index(said[-1]) + 1) % len(LETTERS)]


@contextmanager
def resumed(place: Place, state: Path, id: LayerId) -> Iterator[Lasting]:
    with snapshot.resumed(
        State(state), SHAPE, place.draft(id, BASE), place.folder(f"0-{id[0]}"), CancelScope()
    ) as live:
        live.machine.watched = False  # there is no shell in this guest
        yield live


@pytest.fixture
def saved(counting: Place) -> tuple[Path, str]:
    """A saved machine, and what it had written."""
    draft = counting.draft(LayerId("0" * 64), BASE)
    draft.lay()
    folder = counting.folder("0-booted")
    with machine.start(SHAPE, draft.image, CancelScope(), network=False, memory=Memory()) as running:
        said = count(running)
        Lasting(running, folder, None).save(folder / "made", draft.image)
    return folder / "made", said


@real
def test_a_resumed_machine_continues_where_it_was_saved(counting: Place, saved: tuple[Path, str]) -> None:
    state, said = saved
    with resumed(counting, state, ONE) as live:
        assert live.machine.console() == ""
        assert count(live.machine)[0] == after(said)


@real
def test_a_machine_can_be_resumed_and_saved_repeatedly(counting: Place, saved: tuple[Path, str]) -> None:
    state, said = saved
    ram_before = (state / "ram").read_bytes()
    for id in (ONE, TWO):
        with resumed(counting, state, id) as live:
            more = count(live.machine)
            assert more[0] == after(said)
            live.save(live.folder / "made")
    again = live.folder / "made"
    assert sorted(path.name for path in again.iterdir()) == ["delta", "device", "ram"]
    assert (again / "ram").samefile(state / "ram")
    assert (again / "delta").stat().st_size < 4 << 20
    with resumed(counting, again, THREE) as third:
        assert count(third.machine)[0] == after(more)
    assert (state / "ram").read_bytes() == ram_before


@real
@pytest.mark.parametrize(
    ("name", "damage", "error", "words"),
    [
        ("device", lambda data: b"no state at all" * 1000, MachineError, "QEMU"),
        ("device", lambda data: data[: len(data) // 2], MachineError, "QEMU"),
        ("ram", lambda data: data[: len(data) // 2], MachineError, "QEMU did not start"),
        ("delta", lambda data: b"no delta", ValueError, "not a delta"),
        ("disk.qcow2", lambda data: b"no image", ValueError, "cut off"),
    ],
)
def test_resuming_a_damaged_state_is_an_error(
    counting: Place,
    saved: tuple[Path, str],
    name: str,
    damage: Callable[[bytes], bytes],
    error: type[Exception],
    words: str,
) -> None:
    state, _ = saved
    path = state / name
    path.write_bytes(damage(path.read_bytes() if path.exists() else b""))
    with pytest.raises(error, match=words), resumed(counting, state, ONE):
        pass


@real
def test_a_real_machine_continues_on_new_disks(counting: Place) -> None:
    first, second = counting.draft(ONE, BASE), counting.draft(TWO, ONE)
    first.lay()
    with machine.start(SHAPE, first.image, CancelScope(), network=False, memory=Memory()) as running:
        live = Lasting(running, counting.folder("0-machine"), None)
        live.machine.watched = False
        live.shell = cast(Resident, FakeShell())
        for draft in (first, second):
            count(running)
            live.seal(draft)
            counting.layer(draft)
            nodes = {node["node-name"]: node["ro"] for node in running.qmp.execute("query-named-block-nodes")}
            assert nodes[f"disk{live._disks - 1}"]  # the layer's image is open only for reading
            assert not nodes[f"disk{live._disks}"]
            qemu_img.check(counting.image(draft.id))
            if draft is first:
                assert live.go_on(second, network=False)
    assert qemu_img.backing_file(counting.image(TWO)) == f"../../../result/{ONE}/rootfs/image.qcow2"
