"""Long chains: short backing chains, the same bytes, the same ids; made once, removed with their layer."""

from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from obuild.errors import ProcessError, StoreError, UsageError
from obuild.host import locks, qemu_img
from obuild.plan.keys import LayerId
from obuild.plan.steps import Chain, Step
from obuild.store import flatten as flat
from obuild.store import mtree, removal
from obuild.store.layers import Store
from tests.support.fakes import other_process
from tests.support.layers import FEW

ChainMaker = Callable[[str], Chain]

SIZE = 16 << 20


BUILD = """
from types import SimpleNamespace
step = SimpleNamespace(id=id, parent=parent, key="key")
with store.claim(id), store.use(parent), store.draft(step) as draft:
    draft.lay()
"""

REMOVE = """
store.remove(id, store.parents())
"""


def script(what: str, store: Store, id: LayerId, *, parent: LayerId | None = None, die_at: str = "") -> str:
    """A program that opens the store, waits for a line, and does BUILD or REMOVE, or dies at a failpoint."""
    return f"""
import sys
from pathlib import Path
from obuild.host import failpoints as trace
from obuild.store.layers import Store
from tests.support.layers import FEW
from obuild.store import flatten as flat
flat.LONGEST = FEW
store, id, parent, die_at = Store.open(Path({str(store.root)!r})), {id!r}, {parent!r}, {die_at!r}
if die_at:
    trace.kill_at(die_at)
print("ready", flush=True)
sys.stdin.readline()
{what}"""


def run_all(*scripts: str) -> list[int]:
    """Run such programs at once; returns their exit statuses."""
    with ExitStack() as stack:
        children = [stack.enter_context(other_process(script)) for script in scripts]
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        return [child.wait(60) for child in children]


def steps(chain: ChainMaker, count: int, last: str = "") -> tuple[Step, ...]:
    """A base and `count` steps on it."""
    return chain("".join(f"(run (shell s{number}))" for number in range(count)) + last).steps


def make(store: Store, step: Step, *, data: int = 4096) -> None:
    """Make a layer as a build does; it writes `data` bytes at a place that depends on its id."""
    with store.claim(step.id), store.draft(step) as draft:
        if step.parent is None:
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", draft.image, str(SIZE)], check=True)
        else:
            draft.lay()
        write(draft.image, *commands(step.id, data))


def commands(seed: str, data: int = 4096) -> list[str]:
    """Some sectors, some zeroes over existing data, and the first sector again."""
    drawn = random.Random(seed)
    at, zeroes = (drawn.randrange(0, SIZE - data + 1, 512) for _ in range(2))
    return [
        f"write -P {drawn.randrange(1, 256)} {at} {data}",
        f"write -z {zeroes} 1k",
        f"write -P {drawn.randrange(1, 256)} 0 512",
    ]


def write(image: Path, *lines: str) -> None:
    argv: list[str | Path] = ["qemu-io", "-f", "qcow2", *(word for line in lines for word in ("-c", line)), image]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


def make_all(store: Store, made: tuple[Step, ...]) -> list[LayerId]:
    for step in made:
        make(store, step)
    return [step.id for step in made]


def depth(image: Path) -> int:
    """How many images are below this one, as QEMU would open them."""
    below = 0
    while backing := qemu_img.backing_file(image):
        image = image.parent / backing
        below += 1
    return below


def image_of(store: Store, id: LayerId) -> Path:
    return store.result / id / "rootfs" / "image.qcow2"


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few images make a long chain."""
    monkeypatch.setattr(flat, "LONGEST", FEW)


@pytest.fixture
def parent(store: Store, chain: ChainMaker, short: None) -> LayerId:
    """A layer that must be flattened for its children."""
    return make_all(store, steps(chain, FEW))[-1]


def flats(store: Store) -> list[str]:
    return sorted(os.listdir(store.flats.folder)) if store.flats.folder.is_dir() else []


# -- making


def test_a_chain_of_50_is_shallow_and_has_the_right_content(
    store: Store, chain: ChainMaker, tmp_path: Path
) -> None:
    ids = make_all(store, steps(chain, 50))  # without flattening, QEMU cannot open more than some 44
    assert max(depth(image_of(store, id)) for id in ids) <= flat.LONGEST
    plain = tmp_path / "plain.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", plain, str(SIZE)], check=True)
    write(plain, *(line for id in ids for line in commands(id)))
    subprocess.run(["qemu-img", "compare", "-q", plain, image_of(store, ids[-1])], check=True)
    qemu_img.check(image_of(store, ids[-1]))


def test_no_id_depends_on_it(store: Store, chain: ChainMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [step.id for step in steps(chain, 8)]
    monkeypatch.setattr(flat, "LONGEST", 2)
    assert make_all(store, steps(chain, 8)) == before
    assert store.parents() == dict(zip(before, [None, *before], strict=False))


def test_a_short_chain_is_not_flattened(store: Store, chain: ChainMaker) -> None:
    make_all(store, steps(chain, flat.LONGEST))
    assert flats(store) == []


@pytest.mark.usefixtures("short")
def test_all_children_share_one(store: Store, chain: ChainMaker) -> None:
    *below, parent, child = steps(chain, 5)
    make_all(store, (*below, parent, child))
    other = steps(chain, 4, "(run (shell other))")[-1]
    made = (store.flats.folder / parent.id).stat().st_ino
    make(store, other)
    names = {qemu_img.backing_file(image_of(store, step.id)) for step in (child, other)}
    assert names == {f"../../../flat/{parent.id}/image.qcow2"}
    assert (store.flats.folder / parent.id).stat().st_ino == made


@pytest.mark.usefixtures("short")
def test_it_is_sealed_like_a_layer(store: Store, chain: ChainMaker) -> None:
    *_, parent, _ = ids = make_all(store, steps(chain, 5))
    folder = store.flats.folder / parent
    assert flats(store) == [parent]
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {
        "image.qcow2": 0o444,
        "layer": 0o444,
        "mtree": 0o444,
    }
    assert mtree.damage(folder, read_data=True) == []
    assert [mtree.damage(store.result / id, read_data=True) for id in ids] == [[]] * 6
    assert os.listdir(store.result_tmp) == []
    assert os.listdir(store.locks) == []


@pytest.mark.usefixtures("short")
def test_a_scratch_draft_on_a_deep_layer_uses_it(store: Store, chain: ChainMaker) -> None:
    *_, last = make_all(store, steps(chain, 4))
    with store.scratch(last) as draft:
        draft.lay()
        assert qemu_img.backing_file(draft.image) == f"../../../flat/{last}/image.qcow2"
        subprocess.run(["qemu-img", "compare", "-q", draft.image, image_of(store, last)], check=True)


@pytest.mark.usefixtures("short")
def test_chains_still_work_in_a_moved_store(store: Store, chain: ChainMaker, tmp_path: Path) -> None:
    *_, last = made = steps(chain, 12)
    make_all(store, made[:-1])
    moved = Store.open(store.root.rename(tmp_path / "moved"), create=False)
    make(moved, last)
    qemu_img.check(image_of(moved, last.id))
    subprocess.run(["qemu-img", "info", "--backing-chain", image_of(moved, last.id)], check=True)


def test_a_long_chain_of_an_older_version_is_flattened_at_once(
    store: Store, chain: ChainMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    *below, last = steps(chain, 12)
    make_all(store, tuple(below))
    assert depth(image_of(store, below[-1].id)) == 11
    monkeypatch.setattr(flat, "LONGEST", 4)
    make(store, last)
    assert depth(image_of(store, last.id)) <= 4
    assert flats(store) == [below[-1].id]


def test_a_large_layer_is_not_copied_for_small_ones(store: Store, chain: ChainMaker) -> None:
    base, large, *small = steps(chain, flat.LONGEST + 1)
    make(store, base)
    make(store, large, data=SIZE)
    for step in small:
        make(store, step)
    link = store.flats.chain(small[-1].id)
    assert [link.name.split("/")[0] for link in link] == ["result", "flat", "result", "result"]
    assert link[-2].name == f"result/{large.id}/rootfs/image.qcow2"
    sizes = {id: (store.flats.folder / id / "image.qcow2").stat().st_blocks * 512 for id in flats(store)}
    assert max(sizes.values()) < link[-2].size


def test_the_copied_bytes_grow_little_faster_than_the_chain() -> None:
    links = [flat.Link("base", 1000)]
    copied = 0
    for _ in range(1000):
        links.insert(0, flat.Link("layer", 1))
        if len(links) > flat.LONGEST:
            taken = flat._taken(links)
            size = sum(link.size for link in links[:taken])
            links[:taken] = [flat.Link("flat", size)]
            copied += size
        assert len(links) <= flat.LONGEST
        assert links[-1].name == "base"
    assert copied < 4 * 1000  # copying down to the base each time would take 33 times the size of the layers


@pytest.mark.parametrize("seed", range(20))
def test_not_every_step_makes_one_whatever_the_sizes(seed: int) -> None:
    drawn = random.Random(seed)
    links, last = [flat.Link("base", 1000)], -10
    for number in range(200):
        links.insert(0, flat.Link("layer", 1 << drawn.randrange(0, 30)))
        if len(links) > flat.LONGEST:
            taken = flat._taken(links)
            assert 1 < taken < len(links)
            links[:taken] = [flat.Link("flat", sum(link.size for link in links[:taken]))]
            assert number - last >= flat.LONGEST // 4
            last = number


# -- removing


@pytest.mark.usefixtures("short")
def test_it_is_removed_with_its_layer_and_not_before(store: Store, chain: ChainMaker) -> None:
    *_, parent, child = make_all(store, steps(chain, 5))
    assert not store.remove(parent, store.parents())
    assert flats(store) == [parent]
    assert store.remove(child, store.parents())
    assert flats(store) == [parent], "another child may come"
    assert store.remove(parent, store.parents())
    assert flats(store) == []
    assert os.listdir(store.result_tmp) == []


@pytest.mark.usefixtures("short")
def test_cleaning_leaves_none(store: Store, chain: ChainMaker) -> None:
    make_all(store, steps(chain, 15))
    assert len(flats(store)) > 1
    assert removal.clean(store, tell=lambda id: None) == []
    assert (store.layers(), flats(store), os.listdir(store.locks)) == ([], [], [])


@pytest.mark.usefixtures("short")
def test_it_stays_while_a_draft_is_based_on_it(store: Store, chain: ChainMaker) -> None:
    *below, parent, child = steps(chain, 5)
    make_all(store, (*below, parent))
    with store.use(parent.id), store.claim(child.id), store.draft(child) as draft:
        draft.lay()
        assert not store.remove(parent.id, store.parents())
        assert flats(store) == [parent.id]


# -- damage


@pytest.mark.usefixtures("short")
def test_the_error_for_a_missing_one_names_the_layer_that_needs_it(store: Store, chain: ChainMaker) -> None:
    *below, last = steps(chain, 6)
    *_, parent, child = make_all(store, tuple(below))
    (store.flats.folder / parent).rename(store.root / "elsewhere")
    with pytest.raises(
        StoreError, match=f"{parent} in flat/ is damaged: it is missing, and layer {child} is"
    ) as caught:
        make(store, last)
    assert f"obuild rm {parent}" in caught.value.hint
    with pytest.raises(StoreError, match="it is missing"), store.scratch(child):
        pass
    assert os.listdir(store.result_tmp) == []


@pytest.mark.usefixtures("short")
def test_a_damaged_one_is_not_built_on(store: Store, chain: ChainMaker) -> None:
    *below, last = steps(chain, 5)
    make_all(store, (*below, last))
    parent = below[-1].id
    store.remove(last.id, store.parents())
    image = store.flats.folder / parent / "image.qcow2"
    os.truncate(image, image.stat().st_size - 512)
    with pytest.raises(
        StoreError, match=r"the flattened copy of layer \w+ in flat/ is damaged: its image\.qcow2 has"
    ):
        make(store, last)
    removal.delete(store, parent, tell=lambda id: None)
    make(store, below[-1])
    make(store, last)


@pytest.mark.usefixtures("short")
def test_one_of_a_layer_that_was_made_again_is_not_used(store: Store, chain: ChainMaker) -> None:
    *below, last = steps(chain, 5)
    make_all(store, (*below, last))
    store.remove(last.id, store.parents())
    parent = below[-1]
    (store.result / parent.id).rename(store.root / "elsewhere")
    make(store, parent, data=1024)  # its commands had another result
    with pytest.raises(StoreError, match="removed by hand, or made again"):
        make(store, last)


@pytest.mark.usefixtures("short")
def test_a_layer_that_is_not_based_on_a_layer_is_damaged(store: Store, chain: ChainMaker) -> None:
    base, one, two = steps(chain, 2)
    make_all(store, (base, one))
    image = image_of(store, one.id)
    image.chmod(0o644)
    subprocess.run(
        ["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", image], check=True
    )
    (store.result / one.id / mtree.NAME).unlink()
    mtree.write(store.result / one.id)
    with pytest.raises(StoreError, match=f"layer {one.id} is damaged: its backing file is /etc/passwd"):
        make(store, two)
    image.write_bytes(b"x" * image.stat().st_size)
    with pytest.raises(StoreError, match=f"layer {one.id} is damaged: its image is not qcow2"):
        make(store, two)


def test_a_damaged_layer_that_is_not_read_does_not_matter(
    store: Store, chain: ChainMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flat, "LONGEST", 4)
    *below, last = steps(chain, 6)
    make_all(store, tuple(below))
    image = image_of(store, below[2].id)
    os.truncate(image, 512)
    make(store, last)
    assert below[2].id not in str(store.flats.chain(last.id))


# -- several at once, and crashes


ONE, OTHER = LayerId("a" * 64), LayerId("b" * 64)


def test_two_processes_share_one(store: Store, parent: LayerId) -> None:
    assert run_all(*(script(BUILD, store, id, parent=parent) for id in (ONE, OTHER))) == [0, 0]
    assert flats(store) == [parent]
    names = {qemu_img.backing_file(image_of(store, id)) for id in (ONE, OTHER)}
    assert names == {f"../../../flat/{parent}/image.qcow2"}
    assert (os.listdir(store.result_tmp), os.listdir(store.locks)) == ([], [])


def test_a_process_that_waited_for_another_to_make_it_does_not_make_it_again(
    store: Store, parent: LayerId, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    flatten, file_lock = qemu_img.flatten, locks.file_lock

    @contextmanager
    def late(path: Path) -> Iterator[bool]:
        monkeypatch.setattr(locks, "file_lock", file_lock)
        Store(store.root).flats.below(parent)
        with file_lock(path) as held:
            yield held

    def counted(path: Path, top: str, bottom: str, **more: Any) -> None:
        made.append(path)
        flatten(path, top, bottom, **more)

    monkeypatch.setattr(locks, "file_lock", late)
    monkeypatch.setattr(qemu_img, "flatten", counted)
    assert store.flats.below(parent) == f"flat/{parent}/image.qcow2"
    assert len(made) == 1


def test_it_is_told_how_far_it_is(store: Store, parent: LayerId, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[int, int]] = []
    flatten = qemu_img.flatten

    def slow(path: Path, top: str, bottom: str, *, progress: Callable[[int], object]) -> None:
        progress(1000)
        progress(1 << 40)
        flatten(path, top, bottom)

    monkeypatch.setattr(qemu_img, "flatten", slow)
    store.flats.below(parent, lambda done, total: heard.append((done, total)))
    (first, total), last = heard
    assert first == 1000 < total
    assert last == (total, total), "what is read twice does not count"


@pytest.mark.parametrize(
    ("point", "rubbish", "there"),
    [("flat.making", True, False), ("flat.sealed", True, False), ("flat.renamed", False, True)],
)
def test_a_process_that_dies_while_making_it(
    store: Store, parent: LayerId, point: str, rubbish: bool, there: bool
) -> None:
    assert run_all(script(BUILD, store, ONE, parent=parent, die_at=point)) == [-signal.SIGKILL]
    assert set(os.listdir(store.result_tmp)) == {ONE, *([f"flat-{parent}"] if rubbish else [])}
    assert flats(store) == ([parent] if there else [])
    Store.open(store.root)
    assert os.listdir(store.result_tmp) == []
    assert run_all(script(BUILD, store, ONE, parent=parent)) == [0]
    assert flats(store) == [parent]
    assert depth(image_of(store, ONE)) <= FEW
    subprocess.run(["qemu-img", "compare", "-q", image_of(store, parent), image_of(store, ONE)], check=True)


@pytest.mark.parametrize(("point", "layer"), [("flat.removed", True), ("remove.renamed", False)])
def test_a_process_that_dies_while_removing_it(store: Store, parent: LayerId, point: str, layer: bool) -> None:
    store.flats.below(parent)
    assert flats(store) == [parent]
    assert run_all(script(REMOVE, store, parent, die_at=point)) == [-signal.SIGKILL]
    assert flats(store) == [], "it never outlives its layer"
    assert bool(store.find(parent)) == layer
    assert len(os.listdir(store.result_tmp)) == 1
    Store.open(store.root)
    assert os.listdir(store.result_tmp) == []
    if layer:
        assert store.flats.below(parent) == f"flat/{parent}/image.qcow2"


def test_one_that_is_being_made_is_not_a_draft_with_a_log(store: Store, parent: LayerId) -> None:
    (store.result_tmp / f"flat-{parent}").mkdir()
    with pytest.raises(UsageError, match="no layer"):
        store.resolve("flat-", drafts=True)


def test_a_failure_leaves_nothing(store: Store, parent: LayerId, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, top: str, bottom: str, **more: Any) -> None:
        path.write_bytes(b"half")
        raise ProcessError("x: No space left on device")

    monkeypatch.setattr(qemu_img, "flatten", full)
    with pytest.raises(StoreError, match="cannot write to the store"), store.scratch(parent):
        pass
    assert (flats(store), os.listdir(store.result_tmp), os.listdir(store.locks)) == ([], [], [])
