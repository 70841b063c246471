"""The file of a base image changes after layers were built on it: they stay correct, the next build notices."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from obuild.bases import making
from obuild.builder.chain import Builder
from obuild.errors import ObuildError, UsageError
from obuild.host import disk_content
from obuild.host.qemu_img import Image
from obuild.plan.keys import LayerId
from obuild.plan.steps import Chain
from obuild.store import mtree
from obuild.store.layers import Store
from tests.support.fakes import FakeExecutor, Heard

ChainMaker = Callable[[str], Chain]
OPS = "(run (shell a)) (run (shell b))"


def build(store: Store, chain: Chain) -> list[LayerId]:
    Builder(store, FakeExecutor, Heard().tell).build(chain)
    return [step.id for step in chain.steps]


def content(store: Store, id: LayerId) -> bytes:
    """All that a guest would see of a layer."""
    raw = store.root / "raw"
    image = store.result / id / "rootfs" / "image.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "raw", image, raw], check=True)
    return raw.read_bytes()


def other_disk(path: Path, first: Path) -> Path:
    """The same disk with one more byte set."""
    subprocess.run(["cp", first, path], check=True)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 512k 4k", path], check=True, capture_output=True)
    return path


def replace(tiny: Path, other: Path) -> None:
    other.replace(tiny)


def overwrite(tiny: Path, other: Path) -> None:
    with tiny.open("r+b") as file:  # the same inode
        file.write(other.read_bytes())
        file.truncate()


@pytest.mark.parametrize("change", [replace, overwrite])
def test_layers_stay_and_the_next_build_uses_the_new_base(
    store: Store, chain: ChainMaker, tiny: Path, tmp_path: Path, change: Callable[[Path, Path], None]
) -> None:
    old = build(store, chain(OPS))
    seen = [content(store, id) for id in old]
    change(tiny, other_disk(tmp_path / "other.qcow2", tiny))
    new = build(store, chain(OPS))
    assert not set(old) & set(new)
    assert [content(store, id) for id in old] == seen
    assert content(store, new[0]) != seen[0]
    assert [mtree.damage(store.result / id, read_data=True) for id in (*old, *new)] == [[]] * 6


def test_a_truncated_base_is_refused_and_layers_stay(store: Store, chain: ChainMaker, tiny: Path) -> None:
    old = build(store, chain(OPS))
    seen = [content(store, id) for id in old]
    os.truncate(tiny, 100_000)
    with pytest.raises(UsageError, match="damaged or truncated"):
        chain(OPS)
    assert [content(store, id) for id in old] == seen


def test_a_missing_base_is_reported_and_layers_stay(store: Store, chain: ChainMaker, tiny: Path) -> None:
    made = chain(OPS)
    old = build(store, made)
    tiny.unlink()
    with pytest.raises(UsageError, match="unknown base image 'tiny'"):
        chain(OPS)
    assert build(store, made) == old


def test_a_base_that_changes_between_planning_and_importing_is_not_imported(
    store: Store, chain: ChainMaker, tiny: Path, tmp_path: Path
) -> None:
    made = chain(OPS)
    replace(tiny, other_disk(tmp_path / "other.qcow2", tiny))
    with pytest.raises(ObuildError, match="changed while it was imported"):
        build(store, made)
    assert store.layers() == []


def test_a_base_is_hashed_once_as_long_as_it_is_the_same_file(
    store: Store, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []
    real = disk_content.digest

    def counted(image: Image, scratch: Path | None) -> str:
        hashed.append(image.path)
        return real(image, scratch)

    monkeypatch.setattr(disk_content, "digest", counted)
    digests = {making.find(store, "tiny", say=print).digest for _ in range(3)}
    assert len(digests) == len(hashed) == 1
    os.utime(tiny)
    digests |= {making.find(store, "tiny", say=print).digest for _ in range(3)}
    assert (len(digests), len(hashed)) == (1, 2)
