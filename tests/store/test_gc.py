"""What is removed, in which order and why; and that nothing in use is removed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from obuild.host import locks, qemu_img, stamp
from obuild.plan.keys import LayerId
from obuild.plan.steps import Chain
from obuild.store import flatten, gc, removal
from obuild.store.gc import Item
from obuild.store.layers import Store
from obuild.store.warm import Warm
from tests.support.fakes import other_process
from tests.support.layers import DAY, FAT, NOW, fat_cache, held, make, used
from tests.support.states import PLENTY, RAM
from tests.support.states import save as save_machine

ChainMaker = Callable[[str], Chain]


COLLECT = """
import sys
from pathlib import Path
from obuild.store import gc
from obuild.store.layers import Store
store = Store.open(Path(sys.stdin.readline().strip()))
def tell(item):
    print(item.name, flush=True)
    sys.stdin.readline()
gc.carry_out(store, gc.plan(store, now=0.0, keep_bytes=0), tell)
"""


@pytest.fixture
def family(store: Store, chain: ChainMaker) -> dict[str, LayerId]:
    """root -> one -> two and root -> other; last used 40, 30, 20 and 10 days ago."""
    steps = [*chain("(run (shell one)) (run (shell two))").steps, chain("(run (shell other))").steps[1]]
    for step, days in zip(steps, (40, 30, 20, 10), strict=True):
        make(store, step)
        used(store.result / step.id, days)
    return dict(zip(("root", "one", "two", "other"), (step.id for step in steps), strict=True))


def plan(store: Store, **options: float) -> gc.Plan:
    return gc.plan(store, now=NOW, **options)  # type: ignore[arg-type]  # tests pass integers


def names(items: tuple[Item, ...], family: dict[str, LayerId]) -> list[str]:
    """The items, by the layers' names in these tests."""
    known = {id: name for name, id in family.items()}
    return [known.get(LayerId(item.name), item.name) for item in items]


def left(store: Store) -> set[str]:
    return {layer.id for layer in store.layers()}


def carry_out(store: Store, what: gc.Plan) -> tuple[list[str], list[Item]]:
    gone: list[str] = []
    stayed = gc.carry_out(store, what, lambda item: gone.append(item.name))
    return gone, stayed


# -- the plan


def test_without_options_nothing_useful_is_removed(store: Store, family: dict[str, LayerId]) -> None:
    fat_cache(store, "c", 100)
    assert plan(store).items == ()
    assert plan(store).kept > FAT


def test_leaves_go_before_parents_and_the_least_recently_used_first(
    store: Store, family: dict[str, LayerId]
) -> None:
    fat_cache(store, "c", 15)
    what = plan(store, keep_bytes=0)
    assert names(what.items, family) == ["two", "one", "c", "other", "root"]
    assert (what.kept, what.short, what.in_use) == (0, 0, ())


def test_no_more_is_removed_than_was_asked_for(store: Store, family: dict[str, LayerId]) -> None:
    everything = plan(store).kept
    sizes = {item.name: item.size for item in plan(store, keep_bytes=0).items}
    what = plan(store, keep_bytes=everything - sizes[family["two"]])
    assert names(what.items, family) == ["two"]
    assert what.kept == everything - sizes[family["two"]]
    assert names(plan(store, keep_bytes=what.kept - 1).items, family) == ["two", "one"]
    assert plan(store, keep_bytes=everything).items == ()
    assert names(plan(store, free_bytes=1).items, family) == ["two"]


def test_items_older_than_the_limit_go_whatever_their_size(store: Store, family: dict[str, LayerId]) -> None:
    fat_cache(store, "old", 26)
    fat_cache(store, "new", 1)
    assert names(plan(store, older_than=15 * DAY).items, family) == ["old", "two", "one"]
    assert names(plan(store, older_than=25 * DAY).items, family) == ["old"], "one is old, but two is built on it"


def test_two_options_remove_what_either_asks_for(store: Store, family: dict[str, LayerId]) -> None:
    assert len(plan(store, older_than=5 * DAY, keep_bytes=1 << 40).items) == 4
    assert len(plan(store, older_than=50 * DAY, keep_bytes=0).items) == 4


def test_a_plan_gives_reasons(store: Store, family: dict[str, LayerId]) -> None:
    two, *_ = plan(store, older_than=15 * DAY, keep_bytes=0).items
    assert two.why.startswith("not used since 2023-10-3")
    (first,) = plan(store, free_bytes=1).items
    assert (first.name, first.why) == (family["two"], "least recently used")
    assert (first.kind, first.stands_on, first.used) == ("layer", family["one"], NOW - 20 * DAY)
    assert first.size > 0


def test_a_plan_changes_nothing(store: Store, family: dict[str, LayerId]) -> None:
    fat_cache(store, "c", 15)
    times = {path: path.stat().st_mtime for path in (*store.result.iterdir(), *store.caches.folder.iterdir())}
    plan(store, keep_bytes=0, older_than=0.0)
    assert {path: path.stat().st_mtime for path in times} == times
    assert os.listdir(store.locks) == []


def test_a_layer_in_use_is_skipped_for_others(store: Store, family: dict[str, LayerId]) -> None:
    with held(store, "use", family["two"]):
        used(store.result / family["two"], 20)
        what = plan(store, keep_bytes=0)
        assert names(what.items, family) == ["other"]
        assert names(what.in_use, family) == ["two"]
        assert what.short == what.kept > 0


def test_a_plan_can_be_made_without_the_index(store: Store, family: dict[str, LayerId]) -> None:
    """It cannot be opened on a full disk, when the plan is needed most."""
    with_index = plan(store, keep_bytes=0)
    (store.state / "db" / "db.sqlite").write_bytes(b"no database" * 1000)
    assert plan(store, keep_bytes=0) == with_index


def test_pruning_removes_only_layers_and_at_most_the_limit(store: Store, family: dict[str, LayerId]) -> None:
    fat_cache(store, "c", 100)
    assert names(gc.prune(store, before=NOW - 15 * DAY).items, family) == ["two", "one"]
    assert names(gc.prune(store, before=NOW, limit=3).items, family) == ["two", "one", "other"]
    assert gc.prune(store, before=NOW, limit=0).items == ()


# -- carrying it out


def test_items_are_removed_in_the_order_of_the_plan(store: Store, family: dict[str, LayerId]) -> None:
    fat_cache(store, "a/b", 15)
    gone, stayed = carry_out(store, plan(store, keep_bytes=0))
    assert gone == [family["two"], family["one"], "a/b", family["other"], family["root"]]
    assert stayed == []
    for folder in (store.result, store.result_tmp, store.caches.folder, store.cache_tmp, store.locks):
        assert os.listdir(folder) == []


def test_items_used_since_the_plan_stay(store: Store, family: dict[str, LayerId]) -> None:
    fat_cache(store, "c", 15)
    what = plan(store, keep_bytes=0)
    with store.use(family["one"]), store.caches.borrow("c"):
        pass
    gone, stayed = carry_out(store, what)
    assert gone == [family["two"], family["other"]]
    assert [(item.name, item.why) for item in stayed] == [
        (family["one"], "used since"),
        ("c", "used since"),
        (family["root"], "a layer is built on it"),
    ]
    assert left(store) == {family["root"], family["one"]}
    assert list(store.caches.archives()) == ["c"]


def test_items_that_another_process_uses_since_the_plan_stay(store: Store, family: dict[str, LayerId]) -> None:
    """Only the locks show it: here the times of last use do not change."""
    fat_cache(store, "c", 15)
    what = plan(store, keep_bytes=0)
    with held(store, "use", family["two"]), held(store, "cache", "c"):
        used(store.result / family["two"], 20)
        used(store.caches.file("c").parent, 15)
        gone, stayed = carry_out(store, what)
        assert gone == [family["other"]]
        assert [item.why for item in stayed] == [
            "in use",
            "a layer is built on it",
            "in use",
            "a layer is built on it",
        ]
    assert left(store) == {family["root"], family["one"], family["two"]}
    assert list(store.caches.archives()) == ["c"]


def test_items_that_are_already_gone_are_neither_reported_nor_kept(
    store: Store, family: dict[str, LayerId]
) -> None:
    fat_cache(store, "c", 15)
    what = plan(store, keep_bytes=0)
    removal.delete(store, family["one"], tell=lambda id: None)
    carry_out(store, plan(store, older_than=12 * DAY))
    gone, stayed = carry_out(store, what)
    assert gone == [family["other"], family["root"]]
    assert stayed == []


def test_a_child_made_since_the_plan_keeps_its_parent(
    store: Store, family: dict[str, LayerId], chain: ChainMaker
) -> None:
    what = plan(store, keep_bytes=0)
    child = chain("(run (shell one)) (run (shell two)) (run (shell three))").steps[-1]
    make(store, child)
    _, stayed = carry_out(store, what)
    assert left(store) == {family["root"], family["one"], family["two"], child.id}
    assert {item.why for item in stayed} == {"a layer is built on it"}


def test_a_collector_that_is_killed_leaves_a_sound_store(store: Store, family: dict[str, LayerId]) -> None:
    fat_cache(store, "c", 100)
    with other_process(COLLECT) as child:
        assert child.stdin
        assert child.stdout
        child.stdin.write(f"{store.root}\n")
        child.stdin.flush()
        assert child.stdout.readline() == "c\n"
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == f"{family['two']}\n"
        child.send_signal(signal.SIGKILL)
        child.wait()
    again = Store.open(store.root)
    assert left(again) == {family["root"], family["one"], family["other"]}
    for layer in again.layers():
        qemu_img.check(layer.image)
    gone, stayed = carry_out(again, plan(again, keep_bytes=0))
    assert gone == [family["one"], family["other"], family["root"]]
    assert stayed == []


def test_two_collectors_at_once_remove_each_thing_once(store: Store, family: dict[str, LayerId]) -> None:
    for number in range(20):
        fat_cache(store, f"c{number}", 100)
    with ExitStack() as stack:
        children = [stack.enter_context(other_process(COLLECT)) for _ in range(2)]
        told: list[str] = []
        for child in children:
            assert child.stdin
            child.stdin.write(f"{store.root}\n" + "\n" * 100)
            child.stdin.flush()
        for child in children:
            told += child.communicate()[0].splitlines()
    assert sorted(set(told)) == sorted(told)
    gone, _ = carry_out(store, plan(store, keep_bytes=0))
    assert sorted([*told, *gone]) == sorted([*family.values(), *(f"c{number}" for number in range(20))])
    assert left(store) == set()


# -- what is useless


def test_rubbish_is_removed_and_owned_files_stay(store: Store) -> None:
    dead, living = "d" * 64, "e" * 64
    (store.result_tmp / dead / "rootfs").mkdir(parents=True)
    (store.result_tmp / dead / "rootfs" / "image.qcow2").write_bytes(os.urandom(FAT))
    (store.cache_tmp / "0-c-x").mkdir()
    with held(store, "draft", living), store.caches.borrow("y"):
        what = plan(store)
        assert [(item.kind, item.name) for item in what.items] == [
            ("rubbish", f"result-tmp/{dead}"),
            ("rubbish", "cache-tmp/0-c-x"),
        ]
        assert what.size > FAT
        gone, stayed = carry_out(store, what)
        assert len(gone) == 2
        assert stayed == []
        assert os.listdir(store.result_tmp) == [living]
        assert os.listdir(store.cache_tmp) == ["0-c-y"]


def test_rubbish_counts_towards_the_bytes_to_free(store: Store, family: dict[str, LayerId]) -> None:
    (store.result_tmp / ("f" * 64)).mkdir()
    (store.result_tmp / ("f" * 64) / "log").write_bytes(os.urandom(FAT))
    assert [item.kind for item in plan(store, free_bytes=FAT).items] == ["rubbish"]
    assert [item.kind for item in plan(store, free_bytes=FAT + 20_000).items] == ["rubbish", "layer"]


def test_manifests_of_removed_layers_are_removed(store: Store, family: dict[str, LayerId]) -> None:
    store.manifests.mkdir()
    gone, there, fresh, stale = (
        f"{'a' * 64}-1.json",
        f"{family['two']}-1.json",
        f".{'a' * 64}-1.json.x",
        f".{'a' * 64}-1.json.y",
    )
    for name in (gone, there, fresh, stale):
        (store.manifests / name).write_text("{}")
        used(store.manifests / name, 2)
    used(store.manifests / fresh, 0)
    what = plan(store)
    assert {item.name for item in what.items} == {gone, stale}
    carry_out(store, what)
    assert sorted(os.listdir(store.manifests)) == sorted([there, fresh])


def test_a_flattened_copy_is_removed_if_its_layer_has_no_children(
    store: Store, family: dict[str, LayerId]
) -> None:
    flat = store.root / "flat"
    lost = "f" * 64
    for id in (lost, family["root"], family["two"], family["other"]):
        (flat / id).mkdir(parents=True)
        (flat / id / "image.qcow2").write_bytes(b"flat")
    assert {item.name for item in plan(store).items} == {lost, family["two"], family["other"]}
    what = plan(store)
    with held(store, "use", family["other"]):
        gone, stayed = carry_out(store, what)
    assert set(gone) == {lost, family["two"]}
    assert [(item.name, item.why) for item in stayed] == [(family["other"], "in use")]
    assert set(os.listdir(flat)) == {family["root"], family["other"]}
    assert os.listdir(store.result_tmp) == []


def test_a_flattened_copy_stays_for_a_child_made_since(
    store: Store, family: dict[str, LayerId], chain: ChainMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flatten, "LONGEST", 2)
    store.flats.below(family["two"])
    what = plan(store)
    assert [item.kind for item in what.items] == ["flat"]
    make(store, chain("(run (shell one)) (run (shell two)) (run (shell three))").steps[-1])
    gone, _ = carry_out(store, what)
    assert gone == []
    assert (store.root / "flat" / family["two"]).is_dir()


# -- caches


def test_copying_a_cache_sets_its_last_use_but_not_its_version(store: Store) -> None:
    fat_cache(store, "c", 50)
    before = store.caches.file("c").stat()
    with store.caches.borrow("c"):
        pass
    after = store.caches.file("c").stat()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)
    (item,) = plan(store, keep_bytes=0).items
    assert item.used > NOW


def test_a_cache_stays_while_a_step_has_a_copy(store: Store) -> None:
    fat_cache(store, "c", 50)
    fat_cache(store, "x-c-c", 50)
    with held(store, "cache", "c"):
        used(store.caches.file("c").parent, 50)
        what = plan(store, keep_bytes=0)
        assert [item.name for item in what.items] == ["x-c-c"]
        assert [item.name for item in what.in_use] == ["c"]


def test_a_copy_whose_owner_died_does_not_keep_the_cache(store: Store) -> None:
    fat_cache(store, "c", 50)
    (store.cache_tmp / "0-c-c").mkdir()
    gone, _ = carry_out(store, plan(store, keep_bytes=0))
    assert gone == ["cache-tmp/0-c-c", "c"]


# -- warm states


def warm_up(store: Store, id: LayerId, days: float, ram: Path | None = None) -> Path:
    """Save a machine for a layer, last used so many days ago; returns its path."""
    status = (store.result / id).stat()
    assert save_machine(Warm(store, PLENTY, print), id, ram=ram)
    os.utime(store.result / id, ns=(status.st_atime_ns, status.st_mtime_ns))
    used(store.states.folder / id, days)
    return store.states.folder / id


def test_a_warm_state_goes_by_its_last_use_and_before_its_layer(store: Store, family: dict[str, LayerId]) -> None:
    warm_up(store, family["one"], 35)
    warm_up(store, family["other"], 5)
    what = plan(store, keep_bytes=0)
    assert [(item.kind, *names((item,), family)) for item in what.items] == [
        ("warm", "one"),
        ("layer", "two"),
        ("layer", "one"),
        ("warm", "other"),
        ("layer", "other"),
        ("layer", "root"),
    ]
    assert what.items[0].stands_on == family["one"]
    assert what.items[0].size > RAM
    gone, stayed = carry_out(store, what)
    assert len(gone) == 6
    assert stayed == []
    assert store.states.ids() == []
    assert os.listdir(store.states.running) == []


def test_only_a_warm_state_goes_if_that_is_enough(store: Store, family: dict[str, LayerId]) -> None:
    warm_up(store, family["two"], 25)
    what = plan(store, free_bytes=RAM)
    assert [item.kind for item in what.items] == ["warm"]
    assert what.kept == sum(item.size for item in plan(store, keep_bytes=0).items) - what.size


def test_a_warm_state_in_use_stays_with_its_layer(store: Store, family: dict[str, LayerId]) -> None:
    state = warm_up(store, family["two"], 25)
    what = plan(store, keep_bytes=0)
    with locks.folder_lock(state, shared=True):
        again = plan(store, keep_bytes=0)
        assert [(item.kind, *names((item,), family)) for item in again.in_use] == [("warm", "two")]
        assert names(again.items, family) == ["other"]
        _, stayed = carry_out(store, what)
    assert [(item.kind, item.why) for item in stayed[:2]] == [("warm", "in use"), ("layer", "in use")]
    assert state.is_dir()
    assert left(store) == {family["root"], family["one"], family["two"]}


def test_pruning_a_layer_removes_its_state(store: Store, family: dict[str, LayerId]) -> None:
    warm_up(store, family["two"], 1)
    carry_out(store, gc.prune(store, before=NOW - 15 * DAY))
    assert left(store) == {family["root"], family["other"]}
    assert store.states.ids() == []


def test_states_that_share_a_memory_are_counted_once(store: Store, family: dict[str, LayerId]) -> None:
    first = warm_up(store, family["one"], 1)
    (alone,) = [item.size for item in plan(store, keep_bytes=0).items if item.kind == "warm"]
    warm_up(store, family["two"], 1, ram=first / "ram")
    shared = [item.size for item in plan(store, keep_bytes=0).items if item.kind == "warm"]
    assert alone <= sum(shared) < alone + RAM // 2


def test_useless_states_are_always_removed(
    store: Store, family: dict[str, LayerId], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two", "other"):
        warm_up(store, family[name], 1)
    assert plan(store).items == ()
    about = store.states.folder / family["other"] / "about.json"
    about.chmod(0o600)
    about.write_text("{}")
    (item,) = plan(store).items
    assert (item.kind, item.name, item.why) == ("stale", family["other"], "its about.json is damaged")
    assert len([item for item in plan(store, keep_bytes=0).items if item.kind in ("warm", "stale")]) == 3
    (tmp_path / "boot_id").write_text("another")
    monkeypatch.setattr(stamp, "BOOT_ID", tmp_path / "boot_id")
    what = plan(store)
    assert {item.why for item in what.items} == {"its about.json is damaged", "the host has rebooted since"}
    used(store.states.folder / family["one"], 0)
    gone, stayed = carry_out(store, what)
    assert sorted(gone) == sorted([family["two"], family["other"]])
    assert [(item.name, item.why) for item in stayed] == [(family["one"], "used since")]
    assert left(store) == set(family.values())


def test_the_folder_of_a_dead_machine_is_rubbish(store: Store) -> None:
    with Warm(store, PLENTY, print).folder("living"):
        (store.states.running / "1-dead").mkdir()
        what = plan(store)
        assert [(item.kind, item.name) for item in what.items] == [("rubbish", "warm-tmp/1-dead")]
        carry_out(store, what)
        assert os.listdir(store.states.running) == ["0-living"]
