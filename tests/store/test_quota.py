"""Disk usage, and builds that free the space they need."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from obuild.builder.chain import Builder
from obuild.builder.engine import Engine
from obuild.errors import StoreError
from obuild.events import Event, Hit, Note, Saved
from obuild.executors.settings import Settings
from obuild.plan.keys import LayerId
from obuild.plan.steps import Chain
from obuild.spec import parse
from obuild.store import gc, quota, removal, usage
from obuild.store.layers import Store
from obuild.store.quota import Room
from obuild.store.warm import Warm
from tests.support.fakes import FakeExecutor, Heard, Run, other_process
from tests.support.layers import FAT, fat_cache, held, make, make_all
from tests.support.states import PLENTY, RAM, save

ChainMaker = Callable[[str], Chain]
Disk = namedtuple("Disk", "total used free")
CAPACITY = 50 << 20

CLEAN = """
import sys, time
from pathlib import Path
from obuild.store import gc
from obuild.store import removal as upkeep
from obuild.store.layers import Store
root = Path(sys.stdin.readline().strip())
for line in sys.stdin:
    store = Store.open(root)
    if line == "clean\\n":
        upkeep.clean(store, tell=lambda id: None)
    else:
        plan = gc.plan(store, now=time.time() + 1, keep_bytes=0, older_than=0.0)
        gc.carry_out(store, plan, lambda item: None)
    print("done", flush=True)
"""


@pytest.fixture
def small_disk(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file system of the store has room for CAPACITY bytes."""

    def disk_usage(path: Path) -> Disk:
        taken = usage.on_disk(store.root)
        return Disk(CAPACITY, taken, CAPACITY - taken)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)


def free(store: Store) -> int:
    return CAPACITY - usage.on_disk(store.root)


def sizes(store: Store) -> dict[str, tuple[int, int]]:
    return {part.what: (part.count, part.size) for part in quota.look(store).parts}


# -- disk usage


def test_each_kind_is_counted(store: Store, chain: ChainMaker) -> None:
    make_all(store, chain("(run (shell a))"))
    fat_cache(store, "c", 1)
    (store.result_tmp / ("b" * 64)).mkdir()
    (store.result_tmp / ("b" * 64) / "log").write_bytes(os.urandom(FAT))
    (store.root / "warm" / ("a" * 64)).mkdir(parents=True)
    with held(store, "cache", "c"):
        seen = sizes(store)
        assert seen["in the making"][0] == 1
        assert min(seen["in the making"][1], seen["caches"][1]) >= FAT // 2  # links to the same file
    assert {what: count for what, (count, _) in seen.items()} == {
        **{"base images": 1, "layers": 2, "caches": 1, "in the making": 1, "rubbish": 1},
        **{"warm states": 1, "state": 1},
    }
    assert all(size > 0 for _, size in seen.values())
    assert seen["rubbish"][1] >= FAT


def test_the_sum_is_the_size_of_the_folders(store: Store, chain: ChainMaker) -> None:
    make_all(store, chain("(run (shell a))"))
    fat_cache(store, "c", 1)
    quota.look(store)  # creates the index
    seen = quota.look(store)
    assert seen.total == sum(part.size for part in seen.parts)
    assert abs(seen.total - usage.on_disk(store.root)) < 100_000, "folders themselves take a block or two each"
    disk = shutil.disk_usage(store.root)
    assert seen.capacity == disk.total


# -- freeing space


@pytest.mark.usefixtures("small_disk")
def test_with_enough_space_nothing_is_removed(store: Store, chain: ChainMaker) -> None:
    make_all(store, chain("(run (shell a))"))
    heard = Heard()
    Room(store, reserve=1 << 20, max_size=CAPACITY).make(heard.tell)
    assert heard == []
    assert len(store.layers()) == 2


@pytest.mark.usefixtures("small_disk")
def test_the_reserve_is_freed_starting_with_the_oldest(store: Store) -> None:
    for days, name in enumerate(("new", "old", "older")):
        fat_cache(store, name, days)
    heard = Heard()
    Room(store, reserve=free(store) + 1).make(heard.tell)
    assert list(store.caches.archives()) == ["new", "old"]
    (said,) = heard
    assert isinstance(said, Note)
    assert said.text.startswith("removed 1 cache, ")
    assert said.text.endswith(" KiB, to make room for the next step")
    assert os.listdir(store.locks) == []


def test_a_store_that_is_too_large_shrinks(store: Store, chain: ChainMaker) -> None:
    ids = make_all(store, chain("(run (shell a))"))
    fat_cache(store, "c", 1)
    heard = Heard()
    Room(store, max_size=quota.look(store).total - FAT - 1000).make(heard.tell)
    assert [event.text.split(",")[0] for event in heard if isinstance(event, Note)] in (
        ["removed 1 cache"],
        ["removed 1 cache and 1 layer"],
    )
    assert store.find(ids[0])


@pytest.mark.usefixtures("small_disk")
def test_more_is_removed_if_the_first_items_freed_less_than_expected(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with blocks that a base image and its layer share."""
    for days, name in enumerate(("new", "old", "older")):
        fat_cache(store, name, days)
    asked = free(store) + FAT
    monkeypatch.setattr("obuild.store.gc.usage.on_disk", lambda path: 10 * FAT)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: Disk(0, 0, asked - len(store.caches.archives()) * FAT + FAT)
    )
    heard = Heard()
    Room(store, reserve=asked).make(heard.tell)
    assert len(heard) == 2
    assert list(store.caches.archives()) == ["new"]


@pytest.mark.parametrize("option", ["--reserve", "--max-size"])
@pytest.mark.usefixtures("small_disk")
def test_warm_states_count_and_can_be_removed(store: Store, chain: ChainMaker, option: str) -> None:
    """Two share their memory: removing the first frees nothing yet, so the second follows."""
    ids = make_all(store, chain("(run (shell a)) (run (shell b))"))
    states = Warm(store, PLENTY, print)
    save(states, ids[0])
    save(states, ids[1], ram=store.states.folder / ids[0] / "ram")
    for id, when in zip(ids, (1.0, 2.0), strict=False):
        os.utime(store.states.folder / id, (when, when))
    assert sizes(store)["warm states"][0] == 2
    assert sizes(store)["warm states"][1] > RAM
    wanted = RAM // 3
    reserve = free(store) + wanted
    max_size = quota.look(store).total - wanted
    heard = Heard()
    policy = Room(store, reserve=reserve) if option == "--reserve" else Room(store, max_size=max_size)
    policy.make(heard.tell)
    assert [event.text.split(",")[0] for event in heard if isinstance(event, Note)] == ["removed 1 warm state"] * 2
    assert store.states.ids() == []
    assert len(store.layers()) == 3


@pytest.mark.usefixtures("small_disk")
@pytest.mark.parametrize("option", ["--reserve", "--max-size"])
def test_if_not_enough_can_be_freed_nothing_is_removed(store: Store, chain: ChainMaker, option: str) -> None:
    make_all(store, chain("(run (shell a))"))
    policy = Room(store, reserve=CAPACITY) if option == "--reserve" else Room(store, max_size=0)
    with pytest.raises(StoreError, match=f"no room for the next step.*{option}") as caught:
        policy.make(Heard().tell)
    assert "in the store: " in caught.value.hint
    assert len(store.layers()) == 2


def test_only_a_step_that_is_not_cached_frees_space(store: Store, chain: ChainMaker) -> None:
    asked: list[int] = []
    ops = "(run (shell a)) (run (shell b))"
    for _ in range(2):
        builder = Builder(store, FakeExecutor, Heard().tell, make_room=lambda: asked.append(len(store.layers())))
        builder.build(chain(ops))
    assert asked == [0, 1, 2]


def test_without_space_a_step_does_not_start(store: Store, chain: ChainMaker) -> None:
    def full() -> None:
        raise StoreError("no room")

    executor = FakeExecutor()
    with pytest.raises(StoreError, match="no room"):
        Builder(store, lambda: executor, Heard().tell, make_room=full).build(chain("(run (shell a))"))
    assert executor.seen == []
    assert [*os.listdir(store.result_tmp), *os.listdir(store.locks)] == []


# -- while a build runs


def build(store: Store, source: Path, text: str, heard: Heard, policy: Room | None = None) -> LayerId:
    engine = Engine(source, store, Settings(accel="tcg"), heard)
    if policy:
        engine.make_room = policy.make
    return engine.build(parse(text.encode()))


def check_whole(store: Store, last: LayerId, count: int) -> None:
    """The layer exists, with `count` layers below it."""
    below = 0
    id: LayerId | None = last
    while id is not None:
        layer = store.find(id)
        assert layer is not None
        id = layer.parent
        below += 1
    assert below == count


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("how", ["clean", "gc"])
def test_a_build_ends_with_its_layers_though_the_store_is_cleaned_all_the_time(
    store: Store, tmp_path: Path, executor: FakeExecutor, how: str
) -> None:
    """Another process cleans it in every step, and between steps."""
    with other_process(CLEAN) as cleaner:
        assert cleaner.stdin
        cleaner.stdin.write(f"{store.root}\n")

        def clean(*about: object) -> int:
            assert cleaner.stdin
            assert cleaner.stdout
            cleaner.stdin.write(f"{how}\n")
            cleaner.stdin.flush()
            assert cleaner.stdout.readline() == "done\n"
            return 0

        class CleaningHeard(Heard):
            def __call__(self, event: Event) -> None:
                super().__call__(event)
                if isinstance(event.what, Hit | Note):
                    clean()

        spec = "((from tiny) (run (shell a)) (run (cache (c (target /c))) (shell b)) (run (shell c)))"
        executor.script = {"a": clean, "b": clean, "c": clean}
        build(store, tmp_path, spec.replace("shell c", "shell other"), Heard())
        heard = CleaningHeard()
        last = build(store, tmp_path, spec, heard)
    assert len(heard.of(Hit)) == 3, "what the build found as it began is held from then on"
    assert len(heard.of(Saved)) == 1
    check_whole(store, last, 4)


@pytest.mark.usefixtures("tiny")
def test_a_build_keeps_the_caches_of_a_step_that_runs(
    store: Store, tmp_path: Path, executor: FakeExecutor
) -> None:
    fat_cache(store, "c", 100)
    fat_cache(store, "other", 100)

    def collect(run: Run) -> int:
        what = gc.plan(store, now=0.0, keep_bytes=0)
        gc.carry_out(store, what, lambda item: None)
        return 0

    executor.script = {"a": collect}
    last = build(store, tmp_path, "((from tiny) (run (cache (c (target /c))) (shell a)))", Heard())
    assert list(store.caches.archives()) == ["c"]
    check_whole(store, last, 2)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_build_that_frees_space_removes_nothing_of_its_own(
    store: Store, chain: ChainMaker, tmp_path: Path, executor: FakeExecutor, jobs: int
) -> None:
    """Neither the stage that it copies from, nor a cached one that comes later."""
    executor.files = {"f": b"x"}
    stranger = chain("(run (shell stranger))").steps[1]
    one, two, three = (f"(build {name} ((from tiny) (run (shell {name}))))" for name in ("one", "two", "three"))
    copies = "(copy (from (build one)) (src /f) (dst /a)) (copy (from (build two)) (src /f) (dst /b))"
    build(store, tmp_path, "((from tiny) (run (shell two)))", Heard())
    make(store, stranger)
    heard = Heard()

    class Greedy(Room):
        """Always asks for everything."""

        def _missing(self) -> int:
            plan = gc.plan(self.store, now=0.0, keep_bytes=0)
            return plan.size

    last = Engine(tmp_path, store, Settings(accel="tcg"), heard, jobs=jobs, make_room=Greedy(store).make).build(
        parse(f"({one} {three} {two} (from tiny) {copies})".encode())
    )
    check_whole(store, last, 3)
    assert store.find(stranger.id) is None
    assert chain("(run (shell two))").steps[1].id in {event.id for event in heard if isinstance(event, Hit)}
    assert len(store.layers()) == 6
    removal.clean(store, tell=lambda id: None)
    assert store.layers() == [], "nothing is held after the build"
