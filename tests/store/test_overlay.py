"""A store that came with a container image: the lower layer of an overlay, in which no folder can be renamed."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from obuild.builder.chain import Builder
from obuild.errors import StoreError
from obuild.host import fs
from obuild.plan.steps import Chain
from obuild.store import flatten, fsck, gc, removal
from obuild.store.layers import Store
from obuild.store.warm import Warm
from tests.support.fakes import FakeExecutor, Heard
from tests.support.states import PLENTY, save

ChainMaker = Callable[[str], Chain]
OPS = " ".join(f"(run (shell {name}))" for name in "abcdef")


class Killed(Exception):
    """Raised in place of a SIGKILL."""


@pytest.fixture
def made(store: Store, chain: ChainMaker, monkeypatch: pytest.MonkeyPatch) -> Chain:
    """A chain in the store, partly flattened, with a saved machine on its last layer."""
    monkeypatch.setattr(flatten, "LONGEST", 3)
    built = chain(OPS)
    Builder(store, FakeExecutor, Heard().tell).build(built)
    assert save(Warm(store, PLENTY, print), built.steps[-1].id)
    return built


def build(store: Store, chain: Chain) -> list[str]:
    executor = FakeExecutor()
    Builder(store, lambda: executor, Heard().tell).build(chain)
    return [word for word in executor.seen if word not in ("open", "sealed")]


@pytest.fixture
def overlay(store: Store, made: Chain, tmp_path: Path) -> Iterator[Store]:
    """That store under an empty upper layer, as in a container that has just started."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    upper, mount = tmp_path / "upper", tmp_path / "mount"
    upper.mkdir()
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", upper], check=True)
    try:
        for name in ("changes", "work"):
            (upper / name).mkdir()
        options = f"lowerdir={store.root},upperdir={upper}/changes,workdir={upper}/work,redirect_dir=off"
        done = subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", mount], capture_output=True)
        if done.returncode:
            pytest.skip(f"no overlay: {done.stderr.decode()}")
        try:
            with pytest.raises(OSError, match="cross-device"):
                next((mount / "result").iterdir()).rename(mount / "result-tmp/x")
            yield Store.open(mount)
        finally:
            subprocess.run(["umount", mount], check=True)
    finally:
        subprocess.run(["umount", upper], check=True)


def test_a_store_in_an_overlay_is_used_and_cleaned(overlay: Store, made: Chain) -> None:
    assert list(fsck.check(overlay, read_data=True)) == []
    assert build(overlay, made) == []
    assert removal.delete(overlay, made.steps[3].id, tell=lambda id: None) == []
    assert len(overlay.layers()) == 3
    assert list(fsck.check(overlay, read_data=True)) == []
    assert build(overlay, made) == ["c", "d", "e", "f"]
    assert list(fsck.check(overlay, read_data=True)) == []
    assert gc.carry_out(overlay, gc.plan(overlay, now=0.0, keep_bytes=0), lambda item: None) == []
    assert overlay.layers() == []
    assert [
        os.listdir(folder) for folder in (overlay.result_tmp, overlay.flats.folder, overlay.states.folder)
    ] == [
        [],
        [],
        [],
    ]
    assert list(fsck.check(overlay, read_data=True)) == []
    assert build(overlay, made) == ["a", "b", "c", "d", "e", "f"]


@pytest.fixture
def unrenamable(made: Chain, monkeypatch: pytest.MonkeyPatch) -> Chain:
    """Like an overlay: no finished layer, flattened copy or saved machine can be renamed."""
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path.parent.name in ("result", "flat", "warm"):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    return made


def crash(at: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Be killed before a removal's change number `at` to the file system; returns whether that happened."""
    count = 0

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            nonlocal count
            count += 1
            if count >= at:
                raise Killed
            return real(*args, **options)

        return call

    for name in ("write_bytes", "unlink", "rmdir"):
        monkeypatch.setattr(Path, name, counted(getattr(Path, name)))
    for name in ("unlink", "rmdir"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    monkeypatch.setattr(fs, "fsync", counted(fs.fsync))
    return lambda: count >= at


def test_a_removal_killed_at_any_change_leaves_the_layer_complete_or_rubbish(
    store: Store, unrenamable: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = unrenamable.steps[-1].id
    for at in range(1, 100):
        with monkeypatch.context() as patch:
            killed = crash(at, patch)
            try:
                removal.delete(store, id, tell=lambda id: None)
            except Killed:
                pass
        if not killed():
            break
        there = (store.result / id / "log").exists()
        if not there and (store.result / id).exists():  # as a process sees it that still has the store open
            with pytest.raises(StoreError, match="damaged"):
                build(store, unrenamable)
        store.sweep()
        assert (store.result / id).exists() == there
        harmless = {"a lock file that nobody holds", "its about.json cannot be read"}
        assert {finding.what for finding in fsck.check(store, read_data=True)} <= harmless
        gc.carry_out(store, gc.plan(store, now=time.time()), lambda item: None)
        assert {finding.what for finding in fsck.check(store)} <= {"a lock file that nobody holds"}
        assert build(store, unrenamable) == ([] if there else ["f"])
        if not (store.states.folder / id).exists():
            assert save(Warm(store, PLENTY, print), id)
    assert at > 10
    assert store.find(id) is None


def test_a_half_removed_flattened_copy_is_removed(store: Store, unrenamable: Chain) -> None:
    (flattened,) = [path for path in store.flats.folder.iterdir() if path.name == unrenamable.steps[-1].parent]
    removal.delete(store, unrenamable.steps[-1].id, tell=lambda id: None)
    (flattened / "mtree").unlink()
    (store.result_tmp / f"flat-{flattened.name}").write_bytes(fs._LEAVING)
    store.sweep()
    assert not flattened.exists()
    assert list(store.result_tmp.iterdir()) == []
    assert build(store, unrenamable) == ["f"]


def test_a_complete_layer_stays_although_its_removal_had_begun(store: Store, unrenamable: Chain) -> None:
    for id in (unrenamable.steps[2].id, unrenamable.steps[-1].id):
        (store.result_tmp / id).write_bytes(fs._LEAVING)
    store.sweep()
    assert list(store.result_tmp.iterdir()) == []
    assert build(store, unrenamable) == []
