"""Pinned packages, with an archive of our own: an image is the same when the archive has moved on, or is gone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from obuild.bases import lockfile, making, recipe, verify
from obuild.bases.kind import digest
from obuild.bases.scratch import apt
from obuild.errors import ObuildError, UsageError
from obuild.host import disk_content, qemu_img
from obuild.store import fsck
from obuild.store.layers import Store
from tests.support.debian_archive import FILES, RECIPE, SUITE, DebianArchive


def make(store: Store, folder: Path, *, locked: bool = True) -> str:
    """Make the image, pinning its packages or pinned; returns the digest of its content."""
    path, made = making.make(
        store, str(folder / "mine.toml"), say=print, again="yes", locked=locked, lock=not locked
    )
    assert made
    return disk_content.digest(qemu_img.inspect(path), None)


def kept(store: Store, lock: Path, name: str) -> Path:
    """What the store keeps of a package, or of the index."""
    tables = lockfile.read(lock, "packages") | lockfile.read(lock, "archive")
    return store.root / "downloads" / tables[name].replace(":", "-")


def test_an_image_of_pinned_packages_is_the_same_without_the_archive(
    store: Store, tmp_path: Path, archive: DebianArchive
) -> None:
    before = make(store, tmp_path, locked=False)
    lock = tmp_path / "mine.lock"
    assert list(lockfile.read(lock, "packages")) == ["one_1:1.0-1_all", "two_2.0_all"]
    assert list(lockfile.read(lock, "releases")) == [SUITE]
    assert lockfile.read(lock, "archive")["date"] == "2026-07-11T10:16:37Z"
    assert lockfile.read(lock, "archive")["mirror"] == archive.url
    names = ("one_1:1.0-1_all", "two_2.0_all", "index")
    assert sorted(store.downloads.names()) == sorted(kept(store, lock, name).name for name in names)
    assert list(fsck.check(store, read_data=True)) == []

    archive.add("one", "1:1.1", FILES)
    archive.publish()
    assert make(store, tmp_path) == before, "the archive has moved on"

    shutil.rmtree(archive.folder)
    assert verify.again(store, "mine", say=print) == (before, before), "and is gone"


def test_what_the_store_no_longer_has_is_taken_from_the_archive_again(
    store: Store, tmp_path: Path, archive: DebianArchive
) -> None:
    before = make(store, tmp_path, locked=False)
    image = store.base_image / "mine.qcow2"
    inode = image.stat().st_ino
    lock = tmp_path / "mine.lock"
    kept(store, lock, "two_2.0_all").unlink()
    kept(store, lock, "index").unlink()
    archive.add("three", "3", {})
    archive.publish()
    assert make(store, tmp_path) == before
    assert kept(store, lock, "two_2.0_all").exists()

    inode = image.stat().st_ino
    kept(store, lock, "two_2.0_all").unlink()
    archive.add("two", "2.1", {"usr/bin/two": "newer\n"})
    archive.publish()
    with pytest.raises(
        UsageError, match=r"neither the store nor the archive has .*mine\.lock: two_2\.0_all"
    ) as caught:
        make(store, tmp_path)
    assert caught.value.hint.endswith('mirror = "http://snapshot.debian.org/archive/debian/20260711T101637Z"')
    shutil.rmtree(archive.folder)
    with pytest.raises(
        ObuildError, match="the store lacks packages of the lock file, and the archive cannot be read"
    ):
        make(store, tmp_path)
    assert image.stat().st_ino == inode
    assert not [path.name for path in store.base_image.iterdir() if path.name.startswith(".")]


def test_a_lock_file_without_a_package_of_the_recipe_is_refused(
    store: Store, tmp_path: Path, archive: DebianArchive
) -> None:
    make(store, tmp_path, locked=False)
    path = tmp_path / "mine.toml"
    path.write_text(path.read_text().replace('"two"]', '"two", "three"]'))
    with pytest.raises(UsageError, match=r"mine\.lock does not have three"):
        make(store, tmp_path)


# -- sources


@pytest.mark.parametrize(
    ("mirror", "expected"),
    [
        (apt.MIRROR, [apt.MIRROR, apt.MIRROR, apt.SECURITY]),
        ("http://here/mirror/", ["http://here/mirror", "http://here/mirror", apt.SECURITY]),
        ("file:///a%20b/debian", ["copy:/a%20b/debian", "copy:/a%20b/debian", apt.SECURITY]),
        (
            "http://snapshot.debian.org/archive/debian/20260711T101637Z",
            [
                "http://snapshot.debian.org/archive/debian/20260711T101637Z",
                "http://snapshot.debian.org/archive/debian/20260711T101637Z",
                "http://snapshot.debian.org/archive/debian-security/20260711T101637Z",
            ],
        ),
    ],
)
def test_the_suites_of_a_release_are_taken_from_a_mirror(mirror: str, expected: list[str]) -> None:
    lines = apt.lines(mirror, "bookworm", updates=True)
    suites = ("bookworm", "bookworm-updates", "bookworm-security")
    assert lines == tuple(f"deb {address} {suite} main" for address, suite in zip(expected, suites, strict=True))
    assert apt.lines(mirror, "bookworm", updates=False) == lines[:1]


def test_sid_has_no_suites_of_updates() -> None:
    assert apt.lines(apt.MIRROR, "sid", updates=True) == (f"deb {apt.MIRROR} sid main",)


def test_old_signatures_are_good_enough_for_a_snapshot_only() -> None:
    assert apt.config(["deb http://a/debian/20260711T101637Z bookworm main"])
    assert not apt.config(["deb http://a/debian bookworm main"])


def test_a_mirror_is_no_input_of_an_image(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE.replace("URL", "http://one/debian"))
    first = digest(recipe.load(path))
    path.write_text(RECIPE.replace("URL", "http://two/debian"))
    assert digest(recipe.load(path)) == first
    path.write_text(RECIPE.replace("URL", "ftp://two/debian"))
    with pytest.raises(UsageError, match=r"mine\.toml:10:1: mirror is"):
        recipe.load(path)
