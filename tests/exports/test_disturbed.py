"""Exports that are disturbed: layers in use or being removed, deep chains, crashes, interrupts, full disks."""

from __future__ import annotations

import filecmp
import os
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from obuild.errors import ObuildError, StoreError
from obuild.exports.export import Wanted, export
from obuild.guests.profile import OSES, Card
from obuild.host import failpoints
from obuild.plan.keys import LayerId
from obuild.plan.steps import Chain
from obuild.store.layers import Store
from tests.support import odd
from tests.support.disks import ext4_disk, small_file_system
from tests.support.layers import make_all

POINTS = [point for point in failpoints.POINTS if point.startswith("export.")]
MIB = 1 << 20


def silent(text: str) -> None:
    pass


@pytest.fixture
def layer(store: Store, chain: Callable[[str], Chain]) -> LayerId:
    return make_all(store, chain("(run (shell one))"))[-1]


@pytest.fixture
def disk(store: Store, layer: LayerId, tmp_path: Path) -> Path:
    """The layer's disk, unpacked by QEMU."""
    return unpacked(store, layer, tmp_path / "disk.raw")


def unpacked(store: Store, layer: LayerId, path: Path) -> Path:
    subprocess.run(["qemu-img", "convert", "-O", "raw", store.layer(layer).image, path], check=True)
    return path


def wanted(out: Path, *types: str, **changes: Any) -> Wanted:
    return Wanted(types or ("raw", "qcow2"), out, "pg", Card())._replace(**changes)


def is_whole(out: Path, disk: Path) -> None:
    """Check that an export has left the two images, checksums, perhaps their provenance, and nothing else."""
    names = {path.name for path in out.iterdir()} - {"pg.provenance.json"}
    assert names == {"SHA256SUMS", "pg.qcow2", "pg.raw"}
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=out, check=True)
    for path, format in ((out / "pg.raw", "raw"), (out / "pg.qcow2", "qcow2")):
        subprocess.run(["qemu-img", "compare", "-q", "-F", format, "-f", "raw", disk, path], check=True)


# -- the layer


def test_a_layer_in_use_is_exported_and_cannot_be_removed_meanwhile(
    store: Store, layer: LayerId, disk: Path, tmp_path: Path
) -> None:
    def remove(text: str) -> None:
        assert not store.remove(layer, {})

    with store.use(layer):  # a build goes on from it
        export(store, layer, wanted(tmp_path / "out"), say=remove)
    is_whole(tmp_path / "out", disk)
    assert store.remove(layer, {})


@pytest.mark.parametrize(("point", "there"), [("remove.locked", True), ("remove.renamed", False)])
def test_a_layer_whose_removal_was_cut_off_is_there_or_not(
    store: Store, layer: LayerId, disk: Path, tmp_path: Path, point: str, there: bool
) -> None:
    where = f"--store=qemu:{store.root}"
    assert odd.run(["rm", layer, where], before=partial(failpoints.kill_at, point))[0] == -9
    if there:
        export(store, layer, wanted(tmp_path / "out"), say=silent)
        is_whole(tmp_path / "out", disk)
    else:
        with pytest.raises(StoreError, match="was removed from the store"):
            export(store, layer, wanted(tmp_path / "out"), say=silent)
        assert not (tmp_path / "out").exists()


def test_a_layer_on_100_others_is_exported(store: Store, chain: Callable[[str], Chain], tmp_path: Path) -> None:
    ids = make_all(store, chain("".join(f"(run (shell {number}))" for number in range(100))))
    export(store, ids[-1], wanted(tmp_path / "out"), say=silent)
    is_whole(tmp_path / "out", unpacked(store, ids[-1], tmp_path / "disk.raw"))


@pytest.mark.parametrize("os", OSES)
def test_layers_of_all_systems_are_exported(
    store: Store, layer: LayerId, disk: Path, tmp_path: Path, os: str
) -> None:
    export(store, layer, wanted(tmp_path / "out", card=Card(os=os)), say=silent)
    is_whole(tmp_path / "out", disk)


# -- crashes and interrupts


def times(point: str) -> list[str]:
    """A point for each of the images, if it is passed for each."""
    return [point] if point in ("export.unpacked", "export.documented") else [point, f"{point}:2"]


@pytest.mark.parametrize("point", [each for point in POINTS for each in times(point)])
def test_after_a_kill_the_next_export_completes_the_images(
    store: Store, layer: LayerId, disk: Path, tmp_path: Path, point: str
) -> None:
    out = tmp_path / "out"
    argv = ["export", layer, f"--store=qemu:{store.root}", "--type=raw", "--type=qcow2", f"-o{out}", "--name=pg"]
    assert odd.run(argv, before=partial(failpoints.kill_at, point))[0] == -9
    if (out / "pg.raw").exists():
        assert filecmp.cmp(out / "pg.raw", disk, shallow=False)
    code, _, err = odd.run([*argv, "--force"])
    assert code == 0, err
    is_whole(out, disk)
    assert store.remove(layer, {})  # nobody holds it


@pytest.mark.parametrize("point", POINTS)
def test_after_an_interrupt_there_are_whole_images_only(
    store: Store, layer: LayerId, disk: Path, tmp_path: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reach(name: str) -> None:
        if name == point:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(failpoints, "reach", reach)
        with pytest.raises(KeyboardInterrupt):
            export(store, layer, wanted(out, documented=True), say=silent)
    left = {path.name for path in out.iterdir()}
    placed = {"export.placed": {"pg.raw"}, "export.documented": {"pg.raw", "pg.qcow2", "SHA256SUMS"}}
    assert left == placed.get(point, set())
    export(store, layer, wanted(out, force=True, documented=True), say=silent)
    is_whole(out, disk)


# -- full disks


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
@pytest.mark.parametrize("change", ["grow", "shrink"])
def test_a_disk_that_is_full_while_the_image_is_resized(store: Store, tmp_path: Path, change: str) -> None:
    (tmp_path / "file").write_bytes(os.urandom(MIB))
    disk = ext4_disk(tmp_path / "disk.raw", f"write {tmp_path / 'file'} file", size=128 * MIB)
    image = store.layer(LayerId("5" * 64)).image
    image.parent.mkdir(parents=True)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", disk, image], check=True)
    size = 4096 * MIB if change == "grow" else 0
    with small_file_system(tmp_path / "small.img", tmp_path / "small", 3 * MIB) as out:
        before = {path.name for path in out.iterdir()}
        with pytest.raises(ObuildError, match=r"cannot write to .*No space left on device"):
            export(store, LayerId("5" * 64), wanted(out, "raw", size=size, shrink=not size), say=silent)
        assert {path.name for path in out.iterdir()} == before
