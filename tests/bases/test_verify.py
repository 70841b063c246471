"""Make a base image again and compare: the same, different, or impossible."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from obuild.bases import lockfile, making, record, verify
from obuild.bases.kind import Installed, Making, Recipe
from obuild.bases.scratch import image as scratch
from obuild.errors import UsageError
from obuild.guests.profile import Card
from obuild.store.layers import Store
from tests.support import odd
from tests.support.fakes import boot_disk

RECIPE = 'kind="scratch"\nsize="64M"\n[scratch]\nsuite="bookworm"\n'


@pytest.fixture
def packages(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What images are made of, by a quick way that is used instead; one, `mine`, is there."""
    found = {"bash_5.2_amd64": f"sha256:{'a' * 64}"}

    def make(plan: Recipe, out: Path, given: Making) -> Card:
        given.installed(Installed(found))
        out.write_bytes(boot_disk(str(found), b""))
        return plan.card

    monkeypatch.setattr(scratch, "make", make)
    (tmp_path / "mine.toml").write_text(RECIPE)
    making.make(store, str(tmp_path / "mine.toml"), say=print)
    return found


def test_an_image_that_is_made_again_is_compared_and_kept(store: Store, packages: dict[str, str]) -> None:
    image = store.base_image / "mine.qcow2"
    before = image.stat()
    first, second = verify.again(store, "mine", say=print)
    assert first == second
    packages["bash_5.2_amd64"] = f"sha256:{'b' * 64}"
    assert verify.again(store, "mine", say=print)[1] != first
    assert (image.stat().st_ino, image.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert sorted(path.name for path in store.base_image.iterdir()) == ["mine.made", "mine.qcow2", "mine.toml"]


def test_a_sealed_disk_is_compared_as_well(
    store: Store, packages: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed = [b"one", b"one", b"two"]
    make = scratch.make

    def also_sealed(plan: Recipe, out: Path, given: Making) -> Card:
        out.with_suffix(".verity.raw").write_bytes(boot_disk(sealed.pop(0).decode(), b""))
        return make(plan, out, given)

    monkeypatch.setattr(scratch, "make", also_sealed)
    making.make(store, record_path(store), say=print, again="yes")
    assert len(set(verify.again(store, "mine", say=print))) == 1
    assert len(set(verify.again(store, "mine", say=print))) == 2


def record_path(store: Store) -> str:
    made = record.read(store.base_image / "mine.qcow2")
    assert made is not None
    return made.path


@pytest.mark.usefixtures("packages")
def test_the_command_says_whether_they_are_the_same(store: Store, packages: dict[str, str]) -> None:
    status, out, _ = odd.run(["base", "verify", "mine", f"--store=qemu:{store.root}"])
    assert (status, "mine is the same made again: sha256:" in out) == (0, True)
    packages["bash_5.2_amd64"] = f"sha256:{'b' * 64}"
    status, _, err = odd.run(["base", "verify", "mine", f"--store=qemu:{store.root}"])
    assert (status, "but made again it is sha256:" in err) == (1, True)


def test_packages_that_differ_from_the_lock_file_are_named(
    store: Store, packages: dict[str, str], tmp_path: Path
) -> None:
    lockfile.write_tables(tmp_path / "mine.lock", {"packages": {"bash_5.1_amd64": f"sha256:{'a' * 64}"}})
    with pytest.raises(UsageError, match=r"the packages are not those of .*mine\.lock: bash_5\.2_amd64"):
        verify.again(store, "mine", say=print)


@pytest.mark.usefixtures("packages")
def test_an_image_whose_recipe_changed_is_not_made_again(store: Store, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(RECIPE.replace("64M", "128M"))
    with pytest.raises(UsageError, match="cannot be made again: its recipe"):
        verify.again(store, "mine", say=print)


@pytest.mark.usefixtures("tiny")
def test_an_image_that_was_added_has_no_recipe(store: Store) -> None:
    with pytest.raises(UsageError, match="its recipe is not known here"):
        verify.again(store, "tiny", say=print)
    with pytest.raises(UsageError, match="unknown base image 'none'"):
        verify.again(store, "none", say=print)


@pytest.mark.usefixtures("packages")
def test_an_image_by_another_version_is_not_made_again(store: Store) -> None:
    path = store.base_image / "mine.made"
    path.write_text(json.dumps({**json.loads(path.read_text()), "digest": "0" * 64}))
    with pytest.raises(UsageError, match="another version of obuild has made it"):
        verify.again(store, "mine", say=print)
