"""A store is damaged in every way: each damage is found and repaired."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import subprocess
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from obuild.builder.chain import Builder
from obuild.errors import ProcessError
from obuild.host import locks, stamp
from obuild.plan.keys import LayerId
from obuild.plan.steps import Chain
from obuild.store import flatten, fsck, gc, removal
from obuild.store.index import Index
from obuild.store.layers import Layer, Store
from obuild.store.warm import Warm
from tests.support import forked
from tests.support.fakes import FakeExecutor, Heard
from tests.support.states import MACHINE, PLENTY, flipped, longer, save

ChainMaker = Callable[[str], Chain]
OPS = " ".join(f"(run (shell {name}))" for name in "abcdef")


@pytest.fixture
def made(store: Store, chain: ChainMaker, monkeypatch: pytest.MonkeyPatch) -> list[Layer]:
    """The layers of a chain, with rows in the index; the later ones are based on flattened copies."""
    monkeypatch.setattr(flatten, "LONGEST", 3)
    built = chain(OPS)
    Builder(store, FakeExecutor, Heard().tell).build(built)
    assert list(fsck.check(store, read_data=True)) == []
    return [Layer(step.id, store.result / step.id) for step in built.steps]


def found(store: Store, *, read_data: bool = False) -> list[str]:
    return [f"{finding.where}: {finding.what}" for finding in fsck.check(store, read_data=read_data)]


def mend(store: Store, *, read_data: bool = False) -> list[str]:
    """Repair everything; returns the results."""
    outcomes = [fsck.repair(store, finding) for finding in fsck.check(store, read_data=read_data)]
    assert list(fsck.check(store, read_data=read_data)) == []
    return outcomes


def writable(path: Path) -> Path:
    path.chmod(0o644)
    return path


def other_key(layer: Layer) -> str:
    writable(layer.path / "key").write_text("another")
    return "its key does not match its id"


def no_key(layer: Layer) -> str:
    (layer.path / "key").unlink()
    return "its key cannot be read: No such file or directory"


def no_image(layer: Layer) -> str:
    layer.image.unlink()
    return "its rootfs/image.qcow2 is missing"


def cut_image(layer: Layer) -> str:
    size = layer.image.stat().st_size
    os.truncate(layer.image, size - 1)
    return f"its rootfs/image.qcow2 has {size - 1} bytes, not {size}"


def no_log(layer: Layer) -> str:
    layer.log.unlink()
    return "its log is missing"


def no_mtree(layer: Layer) -> str:
    (layer.path / "mtree").unlink()
    return "its mtree cannot be read: No such file or directory"


def wrong_mtree(layer: Layer) -> str:
    writable(layer.path / "mtree").write_text("#mtree\nx y z\n")
    return "its mtree is damaged"


def other_backing(layer: Layer) -> str:
    rebase = ["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "/dev/null"]
    subprocess.run([*rebase, str(writable(layer.image))], check=True)
    return "its image is based on /dev/null, not on its parent's image"


def bad_tables(layer: Layer) -> str:
    with writable(layer.image).open("r+b") as image:
        image.seek(65536 * 2)  # after the header and the refcount tables
        image.write(b"\xff" * 4096)
    return "its image is damaged: "


@pytest.mark.parametrize(
    "damage",
    [other_key, no_key, no_image, cut_image, no_log, no_mtree, wrong_mtree, other_backing, bad_tables],
)
def test_a_damaged_layer_is_removed_with_all_layers_built_on_it(
    store: Store, made: list[Layer], chain: ChainMaker, damage: Callable[[Layer], str]
) -> None:
    what = damage(made[2])
    (line,) = [line for line in found(store) if line.startswith(f"result/{made[2].id}")]
    assert what in line
    assert "repaired" in mend(store)
    assert {layer.id for layer in store.layers()} == {layer.id for layer in made[:2]}
    Builder(store, FakeExecutor, Heard().tell).build(chain(OPS))
    assert found(store, read_data=True) == []


def test_a_flipped_bit_is_found_if_data_is_read(store: Store, made: list[Layer]) -> None:
    data = bytearray(made[0].log.read_bytes() or made[0].image.read_bytes())
    data[-1] ^= 1
    writable(made[0].image).write_bytes(data)
    assert found(store) == []
    assert found(store, read_data=True) == [
        f"result/{made[0].id}: the content of its rootfs/image.qcow2 has changed"
    ]
    mend(store, read_data=True)
    assert store.layers() == []


def test_a_layer_without_its_parent(store: Store, made: list[Layer]) -> None:
    shutil.rmtree(made[1].path)
    (line, *_) = [line for line in found(store) if "its parent" in line]
    assert line.startswith(f"result/{made[2].id}: its parent {made[1].id} is not in the store")
    mend(store)
    assert [layer.id for layer in store.layers()] == [made[0].id]


def test_a_damaged_flattened_copy(store: Store, made: list[Layer]) -> None:
    folder, *_ = sorted(store.flats.folder.iterdir())
    image = writable(folder / "image.qcow2")
    os.truncate(image, image.stat().st_size - 1)
    assert any(line.startswith(f"flat/{folder.name}: its image.qcow2 has ") for line in found(store))
    mend(store)
    assert not folder.exists()
    assert store.find(LayerId(folder.name)) is None


def test_a_flattened_copy_without_a_layer(store: Store, made: list[Layer]) -> None:
    folder, *_ = store.flats.folder.iterdir()
    shutil.copytree(folder, store.flats.folder / ("0" * 64))
    assert found(store) == [f"flat/{'0' * 64}: a flattened copy of a layer that is gone"]
    assert mend(store) == ["repaired"]
    assert len(store.layers()) == len(made)


def test_a_foreign_file_is_moved_away_and_never_removed(store: Store, made: list[Layer]) -> None:
    store.states.folder.mkdir()
    folders = (store.result, store.caches.folder, store.flats.folder, store.states.folder)
    for folder in folders:
        (folder / "notes.txt").write_text(folder.name)
    assert len(found(store)) == 4
    assert mend(store) == ["repaired"] * 4
    lost = {path.read_text() for path in (store.root / "lost+found").iterdir()}
    assert lost == {folder.name for folder in folders}


def in_step(store: Store) -> None:
    """Have the index record the stamp of result/, which takes a tick of the clock after the last change."""
    with Index(store) as index:
        while not index._in_step():
            index.count()


@pytest.mark.parametrize("looked", [True, False])
def test_a_store_from_which_layers_were_removed_is_clean(
    store: Store, made: list[Layer], chain: ChainMaker, looked: bool
) -> None:
    if looked:
        in_step(store)
    removal.delete(store, made[4].id, tell=lambda id: None)
    assert found(store, read_data=True) == []
    gc.carry_out(store, gc.plan(store, now=time.time(), keep_bytes=0), lambda item: None)
    assert store.layers() == []
    assert found(store, read_data=True) == []


def test_a_copy_of_a_store_is_clean(store: Store, made: list[Layer], tmp_path: Path) -> None:
    in_step(store)
    assert save(Warm(store, PLENTY, print), made[6].id)
    for number, sparse in enumerate(("never", "always")):
        copy = tmp_path / f"copy{number}"
        subprocess.run(["cp", "-a", f"--sparse={sparse}", store.root, copy], check=True)
        assert found(Store(copy), read_data=True) == []
        in_step(Store(copy))
        assert found(Store(copy), read_data=True) == []


def test_missing_and_wrong_rows(store: Store, made: list[Layer]) -> None:
    def change(statement: str) -> None:
        with sqlite3.connect(store.state / "db" / "db.sqlite") as database:
            database.execute(statement)
        database.close()

    in_step(store)
    change(f"DELETE FROM layers WHERE id = '{made[0].id}'")
    change(f"UPDATE layers SET id = '{'0' * 64}' WHERE id = '{made[1].id}'")
    change(f"UPDATE layers SET parent = '{made[0].id}' WHERE id = '{made[5].id}'")
    where = "state/db/db.sqlite: "
    assert sorted(found(store)) == sorted(
        [
            where + "the index lacks 2 of the layers",
            where + "the index has 1 layers that are gone",
            where + f"the index has another parent for the layer {made[5].id}",
        ]
    )
    mend(store)
    with Index(store) as index:
        assert [row.op for row in index.rows() if row.id == made[5].id] == ["/: (run (shell e))"]


def test_what_a_crash_leaves(store: Store, made: list[Layer]) -> None:
    (store.result_tmp / ("1" * 64)).mkdir()
    (store.cache_tmp / "0-c-x").mkdir()
    (store.states.running / "0-x").mkdir(parents=True)
    (store.locks / "left.lock").touch()
    (store.base_image / ".x.part").mkdir()
    (store.state / ".digests.json.abc").touch()
    store.manifests.mkdir(exist_ok=True)
    (store.manifests / f"{'2' * 64}-{'3' * 32}.json").touch()
    assert sorted(found(store)) == [
        "base-image/.x.part: a base image that was never put in place",
        "cache-tmp/0-c-x: a copy of a cache that no living process owns",
        f"result-tmp/{'1' * 64}: a draft that no living process owns",
        "state/.digests.json.abc: a file that was never finished",
        "state/locks/left.lock: a lock file that nobody holds",
        f"state/manifests/{'2' * 64}-{'3' * 32}.json: a manifest of a layer that is gone",
        "warm-tmp/0-x: a machine that no living process owns",
    ]
    mend(store)
    assert list(store.locks.iterdir()) == []


def test_files_of_a_living_process_are_not_findings(store: Store, made: list[Layer], chain: ChainMaker) -> None:
    step = chain(f"{OPS} (run (shell last))").steps[-1]
    with (
        store.claim(step.id),
        store.use(made[-1].id),
        store.draft(step) as draft,
        store.caches.borrow("c"),
        locks.file_lock(store.places.lock("new")),
        store.places.staged("new"),
        Warm(store, PLENTY, print).folder("machine"),
    ):
        draft.lay()
        assert found(store) == []


def test_a_damaged_layer_in_use_is_kept_and_reported(store: Store, made: list[Layer]) -> None:
    no_log(made[-1])
    with store.use(made[-1].id):
        (finding,) = fsck.check(store)
        assert fsck.repair(store, finding) == f"not repaired: a build is using {made[-1].id}"
    mend(store)


def test_problems_of_base_images_are_only_reported(store: Store, made: list[Layer], tiny: Path) -> None:
    tiny.write_bytes(b"no disk")
    (store.base_image / "gone.toml").touch()
    assert [fsck.repair(store, finding) for finding in fsck.check(store)] == ["cannot be repaired"] * 2
    assert tiny.exists()


def test_a_cache_that_no_guest_could_unpack(store: Store, made: list[Layer], tmp_path: Path) -> None:
    for name in ("good", "bad"):
        archive = tmp_path / "cache.tar"
        with tarfile.open(archive, "w") as tar:
            tar.addfile(tarfile.TarInfo("./x" if name == "good" else "../x"))
        with store.caches.borrow(name, empty=True) as copy:
            copy.replace(archive)
    assert found(store) == []
    assert len(found(store, read_data=True)) == 1
    mend(store, read_data=True)
    assert list(store.caches.archives()) == ["good"]


# -- warm states


def test_intact_saved_machines_are_not_findings(store: Store, made: list[Layer]) -> None:
    warm = Warm(store, PLENTY, print)
    assert save(warm, made[1].id)
    assert save(warm, made[2].id, ram=store.states.folder / made[1].id / "ram")
    assert found(store, read_data=True) == []
    with warm.use(made[1].id, MACHINE) as state:
        assert state is not None
        assert found(store, read_data=True) == []


def no_about(state: Path) -> None:
    writable(state / "about.json").write_text("[]")


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (no_about, "its about.json is damaged"),
        (longer, "its ram has changed"),
        (lambda state: (state / "device").unlink(), "its device is missing"),
    ],
)
def test_a_changed_saved_machine(
    store: Store, made: list[Layer], damage: Callable[[Path], None], what: str
) -> None:
    save(Warm(store, PLENTY, print), made[1].id)
    damage(store.states.folder / made[1].id)
    assert found(store) == [f"warm/{made[1].id}: {what}"]
    assert mend(store) == ["repaired"]
    assert store.states.ids() == []
    assert len(store.layers()) == len(made)


def test_the_small_files_of_a_machine_are_read_with_the_data(store: Store, made: list[Layer]) -> None:
    save(Warm(store, PLENTY, print), made[1].id)
    flipped("delta")(store.states.folder / made[1].id)
    assert found(store) == []
    assert found(store, read_data=True) == [f"warm/{made[1].id}: its delta has changed"]


def test_a_saved_machine_of_a_layer_that_is_gone(store: Store, made: list[Layer]) -> None:
    save(Warm(store, PLENTY, print), made[-1].id)
    shutil.rmtree(made[-1].path)
    assert f"warm/{made[-1].id}: a saved machine of a layer that is gone" in found(store)
    mend(store)
    assert store.states.ids() == []


def test_a_machine_from_before_the_host_rebooted_is_not_a_finding(
    store: Store, made: list[Layer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever has happened to its files: they were never synced."""
    save(Warm(store, PLENTY, print), made[1].id)
    longer(store.states.folder / made[1].id)
    (tmp_path / "boot_id").write_text("another")
    monkeypatch.setattr(stamp, "BOOT_ID", tmp_path / "boot_id")
    assert found(store, read_data=True) == []


def test_a_damaged_machine_in_use_is_kept_and_reported(store: Store, made: list[Layer]) -> None:
    warm = Warm(store, PLENTY, print)
    save(warm, made[1].id)
    with warm.use(made[1].id, MACHINE):
        longer(store.states.folder / made[1].id)
        (finding,) = fsck.check(store)
        assert fsck.repair(store, finding) == f"not repaired: a build is using it: {made[1].id}"
    assert mend(store) == ["repaired"]


# -- the command


def test_the_command_prints_its_findings_and_exits_with_1_until_all_are_repaired(
    store: Store, made: list[Layer]
) -> None:
    def run(*options: str) -> subprocess.CompletedProcess[str]:
        return forked.run(["fsck", f"--store=qemu:{store.root}", *options])

    done = run()
    assert (done.returncode, done.stdout) == (0, "clean: 7 layers\n")
    no_log(made[-1])
    (store.base_image / "gone.toml").touch()
    done = run()
    assert done.returncode == 1
    assert f"result/{made[-1].id}: its log is missing\n  repair: remove it, its tags" in done.stdout
    assert "--repair" in done.stderr
    listed = json.loads(run("--json").stdout)
    assert [finding["outcome"] for finding in listed["findings"]] == ["found", "found"]
    done = run("--repair")
    assert done.returncode == 1
    assert "  repaired\n" in done.stdout
    assert "1 of 2 findings" in done.stderr
    (store.base_image / "gone.toml").unlink()
    assert run().stdout == "clean: 6 layers\n"


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
@pytest.mark.parametrize("name", ["key", "mtree", "image.qcow2"])
def test_a_lack_of_descriptors_or_memory_is_not_taken_for_damage(
    store: Store, made: list[Layer], monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    """A repair would otherwise remove layers that are whole."""
    real = os.open

    def lacking(path: str | Path, *args: int, **options: int) -> int:
        if str(path).startswith(str(store.result)) and str(path).endswith(name):
            raise OSError(code, os.strerror(code), str(path))
        return real(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", lacking)
        with pytest.raises(OSError, match=os.strerror(code)):
            found(store, read_data=True)
    assert found(store, read_data=True) == []
    assert all(layer.path.exists() for layer in made)


@pytest.mark.parametrize(
    "ends", ["kill -9 $$", "echo 'qemu-img: Could not open: Cannot allocate memory' >&2; exit 1"]
)
def test_a_qemu_img_without_memory_is_not_taken_for_damage(
    store: Store, made: list[Layer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ends: str
) -> None:
    program = tmp_path / "qemu-img"
    program.write_text(f"#!/bin/sh\n{ends}\n")
    program.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        with pytest.raises(ProcessError, match=r"signal 9|Cannot allocate memory"):
            found(store)
    assert found(store) == []
