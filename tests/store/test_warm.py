"""Saved machines: used only where they fit, never an obstacle, and never beyond the budget."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from obuild.errors import ObuildError
from obuild.host import locks, stamp
from obuild.plan.keys import LayerId
from obuild.store import fsck, removal, usage, warm
from obuild.store.layers import Store
from obuild.store.saved import States
from obuild.store.warm import State, Warm
from tests.support.fakes import other_process
from tests.support.states import MACHINE, PLENTY, RAM, flipped, longer, save, writable

HOLD = """
import sys
from pathlib import Path
from obuild.store.layers import Store
from obuild.store.warm import Warm
warm = Warm(Store(Path(sys.stdin.readline().strip())), 1 << 30, print)
with warm.boots(sys.stdin.readline().strip()):
    print("booting", flush=True)
    sys.stdin.read()
"""

KEEP = """
import sys
from pathlib import Path
from obuild.host import failpoints as trace
from obuild.store.layers import Store
from obuild.store.warm import Warm
from tests.support.states import save
trace.kill_at(sys.stdin.readline().strip())
store = Store(Path(sys.stdin.readline().strip()))
save(Warm(store, 1 << 30, print), sys.stdin.readline().strip())
"""


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def states(store: Store, notes: list[str]) -> Warm:
    """The saved machines of an empty store, with a budget of 1 GiB."""
    return Warm(store, PLENTY, notes.append)


def layer(store: Store, digit: str = "a") -> LayerId:
    """A folder with the name and the files of a layer, as far as they matter here."""
    path = store.result / (digit * 64)
    path.mkdir()
    for name in ("key", "mtree"):
        (path / name).write_text(name)
    return LayerId(path.name)


def place(store: Store, id: LayerId) -> State:
    return State(store.states.folder / id)


def used(store: Store, id: LayerId, when: float) -> None:
    """Set the last use of a state."""
    os.utime(place(store, id).path, (when, when))


def left(store: Store) -> str:
    """The layers that have a state, by their first digits."""
    return "".join(sorted(id[0] for id in store.states.ids()))


# -- a valid state


def test_a_saved_state_is_found_complete(store: Store, states: Warm, notes: list[str]) -> None:
    id = layer(store)
    assert save(states, id)
    with states.use(id, MACHINE) as state:
        assert state is not None
        assert state.path == store.root / "warm" / id
        assert state.ram.stat().st_size == RAM
        assert (state.device.read_bytes(), state.delta.read_bytes()) == (b"device", b"delta")
        assert not state.disk.exists()
    assert notes == []
    assert os.listdir(store.states.running) == os.listdir(store.locks) == []


def test_a_machines_memory_is_readable_only_by_its_owner(store: Store, states: Warm) -> None:
    id = layer(store)
    with states.folder("x") as folder:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    save(states, id)
    state = place(store, id).path
    folders = (store.states.folder, store.states.running, state)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in state.iterdir()} == {0o400}


def test_using_a_state_sets_its_last_use(store: Store, states: Warm) -> None:
    id = layer(store)
    save(states, id)
    used(store, id, 1.0)
    with states.use(id, MACHINE):
        assert place(store, id).path.stat().st_mtime > 1.0


def test_a_missing_state_gives_no_note(store: Store, states: Warm, notes: list[str]) -> None:
    with states.use(layer(store), MACHINE) as state:
        assert state is None
    assert notes == []


def test_without_a_budget_nothing_is_saved_or_used(store: Store, states: Warm, notes: list[str]) -> None:
    there, id = layer(store, "a"), layer(store, "b")
    save(states, there)
    none = Warm(store, 0, notes.append)
    assert not save(none, id)
    with none.use(there, MACHINE) as state:
        assert state is None
    assert left(store) == "a"
    assert notes == []


def test_a_disk_that_a_boot_wrote_belongs_to_the_state(store: Store, states: Warm, notes: list[str]) -> None:
    id = layer(store)
    with states.folder("x") as folder:
        (made := folder / "made").mkdir()
        for name in ("ram", "device", "disk.qcow2"):
            (made / name).write_text(name)
        assert states.keep(id, MACHINE, made)
    with states.use(id, MACHINE) as state:
        assert state is not None
        assert state.disk.read_text() == "disk.qcow2"
    (place(store, id).path / "disk.qcow2").unlink()
    with states.use(id, MACHINE) as state:
        assert state is None
    assert "its disk.qcow2 is missing" in notes[0]


# -- an invalid state


def gone(name: str) -> Callable[[Path], None]:
    return lambda state: (state / name).unlink()


def later(state: Path) -> None:
    os.utime(state / "ram")


def added(state: Path) -> None:
    (state / "disk.qcow2").touch()


def about(text: str) -> Callable[[Path], None]:
    def act(state: Path) -> None:
        writable(state / "about.json").write_text(text)

    return act


def told(**changes: object) -> Callable[[Path], None]:
    """about.json with some values changed."""

    def act(state: Path) -> None:
        path = writable(state / "about.json")
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return act


UNREADABLE = "its about.json cannot be read"
DAMAGED = "its about.json is damaged"


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (gone("ram"), "its ram is missing"),
        (gone("device"), "its device is missing"),
        (gone("delta"), "its delta is missing"),
        (longer, "its ram has changed"),
        (later, "its ram has changed"),
        (flipped("device"), "its device has changed"),
        (flipped("delta"), "its delta has changed"),
        (added, "its disk.qcow2 has changed"),
        (gone("about.json"), UNREADABLE),
        (about(""), UNREADABLE),
        (about("{"), UNREADABLE),
        (about("[" * 100_000), UNREADABLE),
        (about("[]"), DAMAGED),
        (about("{}"), DAMAGED),
        (about('{"format": 1}'), DAMAGED),
        (told(files=[]), DAMAGED),
        (told(files={}), "its ram has changed"),
        (told(files={"ram": 3}), "its ram has changed"),
        (told(sha256={}), "its device has changed"),
        (told(format=2), "it was saved by another version of obuild"),
        (told(machine="QEMU 9"), "it was saved by another QEMU or obuild, or has another size"),
        (told(boot="another"), "the host has rebooted since"),
        (told(layer=[]), "its layer was removed and made again"),
    ],
)
def test_a_useless_state_is_reported_once_and_removed(
    store: Store, states: Warm, notes: list[str], harm: Callable[[Path], None], why: str
) -> None:
    id = layer(store)
    save(states, id)
    harm(place(store, id).path)
    for _ in range(2):
        with states.use(id, MACHINE) as state:
            assert state is None
    assert notes == [f"the saved machine of layer aaaaaaaaaaaa cannot be used ({why}); booting"]
    assert left(store) == ""
    assert os.listdir(store.states.running) == []


def test_a_state_is_valid_until_the_host_reboots(
    store: Store, states: Warm, notes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = layer(store)
    save(states, id)
    (tmp_path / "boot_id").write_text("another\n")
    monkeypatch.setattr(stamp, "BOOT_ID", tmp_path / "boot_id")
    assert warm.outdated(store, id) == "the host has rebooted since"
    with states.use(id, MACHINE) as state:
        assert state is None
    assert "(the host has rebooted since)" in notes[0]


@pytest.mark.parametrize("name", ["key", "mtree"])
def test_a_layer_that_was_made_again_has_no_state(store: Store, states: Warm, notes: list[str], name: str) -> None:
    id = layer(store)
    save(states, id)
    assert warm.outdated(store, id) == ""
    again = store.result / id / "again"
    again.write_text(name)
    again.replace(store.result / id / name)
    with states.use(id, MACHINE) as state:
        assert state is None
    assert "(its layer was removed and made again)" in notes[0]


def test_a_state_of_a_missing_layer_is_useless(store: Store, states: Warm) -> None:
    id = layer(store)
    save(states, id)
    (store.result / id / "key").unlink()
    assert warm.outdated(store, id) == "its layer is gone"


def test_a_state_that_cannot_be_read_costs_only_time(
    store: Store, states: Warm, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    id = layer(store)
    save(states, id)

    def fail(path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "utime", fail)
        with states.use(id, MACHINE) as state:
            assert state is None
    assert "(Input/output error); booting" in notes[0]
    assert left(store) == ""


def test_a_file_in_the_place_of_a_state_costs_only_time(store: Store, states: Warm, notes: list[str]) -> None:
    id = layer(store)
    store.states.folder.mkdir()
    (store.states.folder / id).touch()
    with states.use(id, MACHINE) as state:
        assert state is None
    assert not save(states, id)
    assert "could not be saved (Not a directory)" in notes[0]
    assert (store.states.folder / id).is_file(), "it is not ours to remove"


def test_an_exception_of_the_block_is_not_taken_for_one_of_the_state(
    store: Store, states: Warm, notes: list[str]
) -> None:
    id = layer(store)
    save(states, id)
    with pytest.raises(OSError, match="theirs"), states.use(id, MACHINE):
        raise OSError("theirs")
    assert notes == []
    assert states.drop(id), "and it is not in use any more"


# -- in use


def test_a_state_in_use_stays_and_may_be_shared(store: Store, states: Warm) -> None:
    id = layer(store)
    save(states, id)
    with states.use(id, MACHINE) as one, states.use(id, MACHINE) as two:
        assert one == two == place(store, id)
        assert not states.drop(id)
        assert not store.states.remove(id)
    assert states.drop(id)
    assert states.drop(id), "there is none"
    assert left(store) == ""


def test_a_state_replaces_an_older_one(store: Store, states: Warm) -> None:
    id = layer(store)
    save(states, id)
    first = place(store, id).ram.read_bytes()
    assert save(states, id, machine="another")
    assert place(store, id).ram.read_bytes() != first
    with states.use(id, "another") as state:
        assert state is not None
    assert os.listdir(store.states.running) == []


def test_a_state_in_use_is_not_replaced(store: Store, states: Warm, notes: list[str]) -> None:
    id = layer(store)
    save(states, id)
    with states.use(id, MACHINE) as state:
        assert state is not None
        before = state.ram.read_bytes()
        assert not save(states, id)
        assert state.ram.read_bytes() == before
    assert notes == []


def test_the_first_of_two_to_save_a_machine_wins(
    store: Store, states: Warm, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    id = layer(store)
    save(states, id)
    before = place(store, id).ram.read_bytes()
    with monkeypatch.context() as patch:  # as if the other one came just after our check
        patch.setattr(States, "remove", lambda self, id: True)
        assert not save(states, id)
    assert place(store, id).ram.read_bytes() == before
    assert notes == []


def test_one_process_at_a_time_boots_a_layer(store: Store, states: Warm) -> None:
    one, other = layer(store, "a"), layer(store, "b")
    lock = store.locks / f"warm-{one}.lock"
    with other_process(HOLD) as child:
        assert child.stdin
        assert child.stdout
        child.stdin.write(f"{store.root}\n{one}\n")
        child.stdin.flush()
        assert child.stdout.readline() == "booting\n"
        with states.boots(other), locks.file_lock(lock, wait=False) as free:
            assert not free
        child.kill()
        with states.boots(one):
            assert lock.exists()
    assert os.listdir(store.locks) == []


# -- the budget


def test_the_least_recently_used_states_are_removed(store: Store, states: Warm, notes: list[str]) -> None:
    a, b, c, d = (layer(store, digit) for digit in "abcd")
    for id, when in ((a, 3.0), (b, 1.0), (c, 2.0)):
        save(states, id)
        used(store, id, when)
    tight = Warm(store, usage.within(store.states.folder) + RAM // 2, notes.append)
    assert save(tight, d)
    assert left(store) == "acd"
    with tight.use(c, MACHINE):
        pass
    assert save(tight, b)
    assert left(store) == "bcd"
    assert usage.within(store.states.folder) <= tight.budget
    assert notes == []
    assert os.listdir(store.locks) == []


def test_a_state_in_use_is_skipped(store: Store, states: Warm) -> None:
    a, b, c = (layer(store, digit) for digit in "abc")
    for id, when in ((a, 1.0), (b, 2.0)):
        save(states, id)
        used(store, id, when)
    tight = Warm(store, usage.within(store.states.folder), states.note)
    with tight.use(a, MACHINE):
        used(store, a, 1.0)
        assert save(tight, c)
    assert left(store) == "ac"


def test_the_state_just_saved_stays_although_others_cannot_be_removed(store: Store, states: Warm) -> None:
    a, b = layer(store, "a"), layer(store, "b")
    save(states, a)
    tight = Warm(store, usage.within(store.states.folder), states.note)
    with tight.use(a, MACHINE):
        assert save(tight, b)
    assert left(store) == "ab"


def test_a_state_larger_than_the_budget_is_not_kept_and_nothing_is_removed(store: Store, states: Warm) -> None:
    a, b = layer(store, "a"), layer(store, "b")
    save(states, a)
    ram = place(store, a).ram
    tight = Warm(store, usage.within(store.states.folder), states.note)
    assert not save(tight, b, size=2 * RAM)
    assert not save(Warm(store, RAM, states.note), b, ram=ram), "alone, it has all of what it shares now"
    assert left(store) == "a"
    assert save(tight, b)
    assert left(store) == "b"


def test_shared_memory_is_counted_once(store: Store, states: Warm) -> None:
    ids = [layer(store, digit) for digit in "abcd"]
    save(states, ids[0])
    alone = usage.within(store.states.folder)
    for when, id in enumerate(ids[1:], 1):
        assert save(Warm(store, alone + 3 * 20_000, states.note), id, ram=place(store, ids[0]).ram)
        used(store, id, when)
    assert left(store) == "abcd"
    assert usage.within(store.states.folder) < 2 * alone
    assert place(store, ids[3]).ram.stat().st_nlink == 4


def test_eviction_goes_on_until_shared_memory_is_really_freed(store: Store, states: Warm) -> None:
    """Three states share one memory; removing two of them frees next to nothing."""
    ids = [layer(store, digit) for digit in "abcde"]
    save(states, ids[0])
    for id in ids[1:3]:
        save(states, id, ram=place(store, ids[0]).ram)
    save(states, ids[3])
    for when, id in enumerate(ids[:4]):
        used(store, id, float(when))
    assert save(Warm(store, usage.within(store.states.folder), states.note), ids[4])
    assert left(store) == "de"


# -- a full disk


def no_space(*args: object, **options: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("what", ["write_text", "rename", "chmod"])
def test_a_failure_to_save_is_only_noted(
    store: Store, states: Warm, notes: list[str], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    id = layer(store)
    with monkeypatch.context() as patch:
        patch.setattr(Path, what, no_space)
        assert not save(states, id)
    assert notes == ["the machine of layer aaaaaaaaaaaa could not be saved (No space left on device)"]
    assert left(store) == ""
    assert save(states, id)


def test_a_machine_with_a_missing_file_is_not_saved(store: Store, states: Warm, notes: list[str]) -> None:
    id = layer(store)
    with states.folder("x") as folder:
        (made := folder / "made").mkdir()
        (made / "ram").touch()
        assert not states.keep(id, MACHINE, made)
    assert "could not be saved (No such file or directory)" in notes[0]


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "denied"), ObuildError("cannot remove it")])
def test_a_state_that_cannot_be_removed_is_not_an_error(
    store: Store, states: Warm, notes: list[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    a, b = layer(store, "a"), layer(store, "b")
    save(states, a)
    tight = Warm(store, usage.within(store.states.folder), notes.append)

    def remove(self: States, id: LayerId) -> bool:
        if id == a:
            raise error
        return True

    monkeypatch.setattr(States, "remove", remove)
    assert save(tight, b)
    assert left(store) == "ab"
    assert not save(tight, a)
    assert notes == [f"the machine of layer aaaaaaaaaaaa could not be saved ({error.args[-1]})"]


# -- with the layer, and after a crash


def test_a_state_does_not_outlive_its_layer(store: Store, states: Warm) -> None:
    id = layer(store)
    save(states, id)
    with store.use(id):
        assert not store.remove(id, {id: None})
        assert left(store) == "a"
    assert store.remove(id, {id: None})
    assert left(store) == ""
    assert os.listdir(store.states.running) == os.listdir(store.result) == []


def test_cleaning_removes_every_state(store: Store, states: Warm) -> None:
    one, lost = layer(store, "a"), layer(store, "b")
    save(states, one)
    save(states, lost)
    (store.result / lost).rename(store.root / "elsewhere")
    with store.use(one):
        assert removal.clean(store, tell=lambda id: None) == [one]
    assert left(store) == ""


def test_the_folder_of_a_machine_exists_while_it_runs(store: Store, states: Warm) -> None:
    with states.folder("x") as one, states.folder("x") as two:
        (one / "ram").touch()
        assert one != two
        (store.states.running / "9-dead").mkdir()
        Store.open(store.root)
        assert sorted(store.states.running.iterdir()) == sorted([one, two])
    assert os.listdir(store.states.running) == []


@pytest.mark.parametrize("point", ["warm.keeping", "warm.kept"])
def test_a_killed_process_leaves_a_complete_state_or_none(
    store: Store, states: Warm, notes: list[str], point: str
) -> None:
    id = layer(store)
    save(states, id)
    with other_process(KEEP) as child:
        child.communicate(f"{point}\n{store.root}\n{id}\n")
        assert child.returncode == -signal.SIGKILL
    found = [finding for finding in fsck.check(store) if finding.where.startswith("warm")]
    assert [finding.what for finding in found] == ["a machine that no living process owns"]
    Store.open(store.root)
    assert os.listdir(store.states.running) == []
    with states.use(id, MACHINE) as state:
        assert state is not None
    assert notes == []
