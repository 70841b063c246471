"""The files of a copy: what is included, what is refused, and what the manifest has."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from obuild.errors import UsageError
from obuild.plan import tree


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A source folder: a, sub/{b, deep/c}, empty/, link -> a."""
    root = tmp_path / "root"
    (root / "sub" / "deep").mkdir(parents=True)
    (root / "empty").mkdir()
    for name in ("a", "sub/b", "sub/deep/c"):
        (root / name).write_text(name)
        (root / name).chmod(0o644)
    (root / "link").symlink_to("a")
    return root


def paths(found: tree.Tree) -> list[str]:
    return [entry.path for entry in found.entries]


def test_sources_go_under_their_basenames_parents_first(root: Path) -> None:
    assert paths(tree.walk(root, ["sub/deep", "a"])) == ["deep", "deep/c", "a"]


@pytest.mark.parametrize("source", [".", "", "/", "./", "sub/."])
def test_the_source_folder_itself_stands_for_its_contents(root: Path, source: str) -> None:
    if source == "sub/.":
        assert paths(tree.walk(root, [source])) == ["sub", "sub/b", "sub/deep", "sub/deep/c"]
    else:
        everything = ["a", "empty", "link", "sub", "sub/b", "sub/deep", "sub/deep/c"]
        assert paths(tree.walk(root, [source])) == everything


def test_a_renamed_folder_stands_for_its_contents(root: Path) -> None:
    assert paths(tree.walk(root, ["sub"], rename="")) == ["b", "deep", "deep/c"]


def test_a_single_file_can_be_renamed(root: Path) -> None:
    (entry,) = tree.walk(root, ["sub/b"], rename="new").entries
    assert (entry.path, entry.source) == ("new", "sub/b")


def test_siblings_come_in_byte_order(root: Path) -> None:
    for name in ("B", "é", "z", "_"):
        (root / "empty" / name).touch()
    assert paths(tree.walk(root, ["empty"])) == [f"empty/{name}" if name else "empty" for name in ["", *"B_zé"]]


def test_excluded_basenames_are_left_out_at_every_depth(root: Path) -> None:
    (root / "sub" / "deep" / "b").touch()
    assert paths(tree.walk(root, ["."], exclude=["b", "empty"])) == ["a", "link", "sub", "sub/deep", "sub/deep/c"]


def test_an_entry_has_kind_mode_and_content(root: Path) -> None:
    (root / "a").chmod(0o4751)
    digest = hashlib.sha256(b"a").hexdigest()
    assert tree.walk(root, ["a", "link"]).manifest == (
        ("file", "a", "4751", digest),
        ("symlink", "link", "777", "a"),
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "a").write_text("A"),
        lambda root: (root / "a").chmod(0o600),
        lambda root: (root / "empty").chmod(0o700),
        lambda root: (root / "a").rename(root / "z"),
        lambda root: (root / "empty" / "new").touch(),
        lambda root: ((root / "link").unlink(), (root / "link").symlink_to("sub")),
    ],
)
def test_every_change_of_the_result_changes_the_manifest(root: Path, change: Callable[[Path], object]) -> None:
    before = tree.walk(root, ["."]).manifest
    change(root)
    assert tree.walk(root, ["."]).manifest != before


def test_times_are_not_part_of_the_manifest(root: Path) -> None:
    before = tree.walk(root, ["."]).manifest
    os.utime(root / "a", (1, 1))
    assert tree.walk(root, ["."]).manifest == before


@pytest.mark.parametrize("source", ["../root/a", "sub/../a", ".."])
def test_dots_cannot_lead_outside(root: Path, source: str) -> None:
    with pytest.raises(UsageError, match="outside"):
        tree.walk(root, [source])


def test_a_symlink_is_copied_but_never_followed(root: Path) -> None:
    (root / "out").symlink_to("/etc")
    assert tree.walk(root, ["out"]).entries[0].content == "/etc"
    with pytest.raises(UsageError, match="not a directory"):
        tree.walk(root, ["out/passwd"])


@pytest.mark.parametrize("source", ["none", "sub/none", "a\0b", "x" * 5000])
def test_the_error_names_a_source_that_cannot_be_read(root: Path, source: str) -> None:
    with pytest.raises(UsageError, match=r"copy source"):
        tree.walk(root, [source])


def test_a_path_through_a_file_is_refused(root: Path) -> None:
    with pytest.raises(UsageError, match="'a' is not a directory"):
        tree.walk(root, ["a/b"])


def test_a_fifo_is_refused_and_does_not_block(root: Path) -> None:
    os.mkfifo(root / "sub" / "pipe")
    with pytest.raises(UsageError, match="sub/pipe") as caught:
        tree.walk(root, ["."])
    assert caught.value.hint == "leave it out: (exclude pipe)"
    assert "sub/pipe" not in paths(tree.walk(root, ["."], exclude=["pipe"]))


@pytest.mark.parametrize(("source", "is_folder"), [("sub", True), (".", True), ("a", False), ("link", False)])
def test_only_a_real_folder_counts(root: Path, source: str, is_folder: bool) -> None:
    assert tree.is_folder(root, source) is is_folder


def test_a_hard_link_whose_other_name_is_not_copied_is_a_file(root: Path) -> None:
    (root / "hard").hardlink_to(root / "a")
    assert [entry.kind for entry in tree.walk(root, ["hard"]).entries] == ["file"]
