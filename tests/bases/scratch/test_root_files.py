"""What a recipe puts into a new root: folders beside it, files, and what is removed at last."""

from __future__ import annotations

import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from obuild.bases import making, recipe, record
from obuild.bases.kind import File, Recipe, digest
from obuild.bases.scratch import mmdebstrap_hook, root_files
from obuild.bases.sources import Choices
from obuild.errors import UsageError
from obuild.store.layers import Store

TEXT = """
kind = "scratch"
size = "64M"
[scratch]
suite = "bookworm"
tree = "files"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a recipe and the tree that it names."""
    (tmp_path / "mine.toml").write_text(TEXT)
    binary = tmp_path / "files/usr/bin/agent"
    binary.parent.mkdir(parents=True)
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    (binary.parent / "helper").symlink_to("agent")
    return tmp_path


def load(folder: Path, text: str = "", *, profile: str = "") -> Recipe:
    if text:
        (folder / "mine.toml").write_text(text)
    return recipe.load(folder / "mine.toml", Choices(profile))


def mistake(folder: Path, text: str = "") -> UsageError:
    with pytest.raises(UsageError) as caught:
        load(folder, text)
    return caught.value


# -- tree


def test_a_tree_becomes_an_archive_of_roots_files_with_their_modes_and_links(folder: Path) -> None:
    (tree,) = load(folder).options.trees
    root_files.write_tree(tree, folder / "tree.tar")
    with tarfile.open(folder / "tree.tar") as tar:
        found = {entry.name: (entry.mode, entry.uid, entry.gid, entry.linkname) for entry in tar.getmembers()}
    assert found["usr/bin/agent"] == (0o755, 0, 0, "")
    assert found["usr/bin/helper"][3] == "agent"
    assert list(found) == ["usr", "usr/bin", "usr/bin/agent", "usr/bin/helper"]


def _write(path: Path) -> None:
    path.write_text("#!/bin/bash\n")


def _relink(path: Path) -> None:
    (path.parent / "helper").unlink()
    (path.parent / "helper").symlink_to("/usr/bin/agent")


@pytest.mark.parametrize(
    "change",
    [_write, _relink, lambda path: path.chmod(0o700), lambda path: path.rename(path.with_name("x")), Path.unlink],
    ids=["content", "link", "mode", "name", "gone"],
)
def test_a_tree_is_part_of_the_digest_and_makes_an_image_stale(
    folder: Path, change: Callable[[Path], None]
) -> None:
    made = load(folder)
    record.write(folder / "mine.qcow2", made, Choices(), when=0.0)
    kept = record.read(folder / "mine.qcow2")
    assert kept
    assert record.changed(kept) == ""
    change(folder / "files/usr/bin/agent")
    assert digest(load(folder)) != digest(made)
    assert "has changed since" in record.changed(kept)


def test_a_tree_may_lie_anywhere(folder: Path) -> None:
    before = digest(load(folder))
    (folder / "files").rename(folder / "elsewhere")
    assert digest(load(folder, TEXT.replace('"files"', '["elsewhere"]'))) == before


def test_drop_ins_and_profiles_add_trees_from_beside_themselves(folder: Path) -> None:
    for name in ("mine.d/more", "debug"):
        (folder / name / "etc").mkdir(parents=True)
    (folder / "mine.d/1.toml").write_text('[scratch]\ntree = ["more"]\n')
    text = TEXT.replace('"files"', '["files"]') + '[profile.debug]\ntree = ["debug"]\n'
    made = load(folder, text, profile="debug")
    assert [tree.root.relative_to(folder) for tree in made.options.trees] == [
        Path("files"),
        Path("mine.d/more"),
        Path("debug"),
    ]
    (folder / "mine.d/more").rename(folder / "mine.d/gone")
    assert f"1.toml:2:1: tree: there is no folder {folder}/mine.d/more" in mistake(folder).message


def test_a_tree_must_be_a_folder(folder: Path) -> None:
    error = mistake(folder, TEXT.replace('"files"', '"mine.toml"'))
    assert f"mine.toml:6:1: tree: there is no folder {folder}/mine.toml" in error.message


@pytest.mark.parametrize(
    ("name", "target", "expected"),
    [
        ("etc/up", "../../etc/passwd", "'etc/up' is a link that leaves the tree: ../../etc/passwd"),
        ("etc/odd\nname", "x", "'etc/odd\\nname' has a character in its name that is not printable"),
        ("run/socket", "x", "'run/socket' would not be in the image: /run is empty there"),
        ("proc", "x", "'proc' would not be in the image"),
    ],
)
def test_links_and_names_that_cannot_be_in_an_image_are_refused(
    folder: Path, name: str, target: str, expected: str
) -> None:
    link = folder / "files" / name
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(target)
    assert expected in mistake(folder).message


def test_a_special_file_is_refused(folder: Path) -> None:
    os.mkfifo(folder / "files/usr/pipe")
    error = mistake(folder)
    assert "mine.toml:6:1: tree" in error.message
    assert "'usr/pipe': it is neither a file, a folder nor a symlink" in error.message


@pytest.mark.parametrize("target", ["/etc/target", "agent", "../lib/agent"])
def test_links_inside_the_image_are_kept(folder: Path, target: str) -> None:
    (folder / "files/usr/bin/link").symlink_to(target)
    assert {entry.path: entry.content for entry in load(folder).options.trees[0].entries}["usr/bin/link"] == target


def test_a_file_cannot_be_a_folder_too(folder: Path) -> None:
    error = mistake(folder, TEXT + '[[scratch.file]]\npath = "/usr/bin"\ntext = ""\n')
    assert "/usr/bin cannot be both a file and a folder" in error.message


# -- files


def test_files_are_roots_and_bring_no_folders(tmp_path: Path) -> None:
    root_files.write_files((File("/etc/a", 0o600, "A"), File("/b", 0o755, "ä")), tmp_path / "files.tar")
    with tarfile.open(tmp_path / "files.tar") as tar:
        entries = tar.getmembers()
        assert [(e.name, e.mode, e.uid, e.isfile()) for e in entries] == [
            ("etc/a", 0o600, 0, True),
            ("b", 0o755, 0, True),
        ]
        last = tar.extractfile("b")
        assert last is not None
        assert last.read().decode() == "ä"


# -- what a link in the new root can do


def check_folders(root: Path, work: Path, *folders: str) -> str:
    """Run that part of the script; returns its complaint."""
    (work / "folders").write_text("".join(f"{folder}\n" for folder in folders))
    see_inside = mmdebstrap_hook.SEE_INSIDE.replace("{here}", str(work))
    script = f"set -eu\nroot=$1\n{see_inside}\n{mmdebstrap_hook.CHECK_FOLDERS.format(here=work)}"
    done = subprocess.run(["sh", "-c", script, "sh", root], check=False)
    complaint = work / "complaint"
    assert done.returncode == complaint.exists()
    return complaint.read_text().strip() if complaint.exists() else ""


def test_files_go_through_links_that_stay_in_the_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "usr/bin").mkdir(parents=True)
    (root / "bin").symlink_to("usr/bin")
    assert check_folders(root, tmp_path, "bin", "new", "usr") == ""


@pytest.mark.parametrize("target", ["/run", "../run", "/"])
def test_files_go_through_no_link_that_leads_out_of_the_root(tmp_path: Path, target: str) -> None:
    root = tmp_path / "root"
    (root / "var").mkdir(parents=True)
    (root / "var/run").symlink_to(target if target.startswith("/") else f"../{target}")
    assert check_folders(root, tmp_path, "var", "var/run").startswith("/var/run is behind a link that")


def make(store: Store, folder: Path, more: str) -> Path:
    """Make an image of two packages of our own; returns its file system, unpacked."""
    with (folder / "mine.toml").open("a") as recipe:
        recipe.write(more)
    path, _ = making.make(store, str(folder / "mine.toml"), say=print)
    subprocess.run(["qemu-img", "convert", "-O", "raw", path, folder / "raw"], check=True)
    (folder / "root").mkdir()
    debugfs = ["debugfs", "-R", f"rdump / {folder}/root", f"{folder}/raw?offset=1048576"]
    subprocess.run(debugfs, check=True, capture_output=True)
    return folder / "root"


@pytest.mark.usefixtures("archive")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root's mmdebstrap could harm this host")
def test_links_in_the_root_lead_to_nothing_of_this_host(store: Store, tmp_path: Path) -> None:
    """A root whose /var/log and machine-id are links that lead out of it, as in an image that is read-only."""
    host = tmp_path / "host"
    host.mkdir()
    for name in ("dpkg.log", "machine-id", "kept"):
        (host / name).write_text("the host's")
    etc = tmp_path / "files/etc"
    etc.mkdir(parents=True)
    (etc / "machine-id").symlink_to(host / "machine-id")
    (etc / "kept").write_text("kept")
    (etc / "gone").write_text("gone")
    patterns = '["/etc/go*", "/var/log/*", "/usr/share/doc/**"]'
    script = f'rm -rf "$1/var/log"; ln -s {host} "$1/var/log"'
    root = make(store, tmp_path, f"tree = ['files']\nremove = {patterns}\nscript = '{script}'\n")
    there = {path.name: path.read_text() for path in host.iterdir()}
    assert there == dict.fromkeys(("dpkg.log", "machine-id", "kept"), "the host's")
    left = [path.relative_to(root) for path in root.rglob("*") if path.is_symlink() or not path.is_dir()]
    assert {"etc/kept", "etc/machine-id", "var/log", "usr/bin/two"} <= set(map(str, left))
    assert not {"etc/gone", "usr/share/doc/one/changelog"} & set(map(str, left))


@pytest.mark.usefixtures("archive")
def test_a_tree_that_does_not_fit_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "files/usr").mkdir(parents=True)
    (tmp_path / "files/usr/bin").symlink_to("/bin")
    with pytest.raises(UsageError, match=r"mine: the recipe's files do not fit into the root: tar: (\./)?usr/bin"):
        make(store, tmp_path, 'tree = ["files"]\n')


@pytest.mark.usefixtures("archive")
def test_a_home_folder_outside_the_root_is_refused(store: Store, tmp_path: Path) -> None:
    script = f'mkdir -p "$1/etc/ssh"; ln -s {tmp_path} "$1/root"'
    with pytest.raises(UsageError, match=r"mine: /+root/\.ssh is behind a link that leads out of the new root"):
        make(store, tmp_path, f"script = '{script}'\n")
    assert not (tmp_path / ".ssh").exists()
    assert list(store.base_image.iterdir()) == []


# -- remove


def remove(bare: Path, *globs: str) -> None:
    """Run that part of the script."""
    subprocess.run(["sh", "-eu", "-c", mmdebstrap_hook.removal(globs, str(bare.parent))], check=True)


def test_what_matches_is_removed(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    for name in (
        "usr/share/doc/a/b",
        "usr/share/man/x",
        "var/log/a.log",
        "var/log/deep/b.log",
        "var/log/c.txt",
        "a+b",
    ):
        (bare / name).parent.mkdir(parents=True, exist_ok=True)
        (bare / name).touch()
    remove(bare, "/usr/share/do[cx]", "/var/log/*.log", "/a+b", "/var/**/b.log", "/none/*")
    left = sorted(str(path.relative_to(bare)) for path in bare.rglob("*") if not path.is_dir())
    assert left == ["usr/share/man/x", "var/log/c.txt"]


def test_nothing_outside_the_root_is_removed(tmp_path: Path) -> None:
    """Whatever links there are in it."""
    bare = tmp_path / "bare"
    (tmp_path / "host/precious").mkdir(parents=True)
    bare.mkdir()
    (bare / "link").symlink_to(tmp_path / "host")
    (bare / "up").symlink_to("..")
    remove(bare, "/link/*", "/up/**", "/*/precious", "/**/precious")
    assert (tmp_path / "host/precious").is_dir()
    remove(bare, "/*")
    assert list(bare.iterdir()) == []
    assert (tmp_path / "host/precious").is_dir()


@pytest.mark.parametrize(
    "glob", ["../etc/*", "/../etc", "/etc/../../x", "etc", "/", "//etc", "/etc/", "/./x", "/a\nb"]
)
def test_a_pattern_that_is_no_path_in_the_root_is_refused(folder: Path, glob: str) -> None:
    error = mistake(folder, TEXT + f"remove = [{glob!r}]\n".replace("'", '"'))
    assert "mine.toml:7:1: remove: " in error.message
    assert error.hint.startswith('write it like "/usr/share/doc/*"')


# -- epoch


@pytest.mark.parametrize("value", ["0", "-1", "true", '"now"', "1.5", "2147483648"])
def test_an_epoch_that_is_none_is_refused(folder: Path, value: str) -> None:
    assert "mine.toml:7:1: epoch is" in mistake(folder, TEXT + f"epoch = {value}\n").message


def test_an_epoch_may_be_given(folder: Path) -> None:
    made = load(folder, TEXT + "epoch = 1700000000\n")
    assert "\nSOURCE_DATE_EPOCH=1700000000\n" in mmdebstrap_hook.text(made, folder)


def test_the_date_of_a_release_is_the_newest_that_was_signed(tmp_path: Path) -> None:
    lists = tmp_path / "var/lib/apt/lists"
    lists.mkdir(parents=True)
    for name, date in (
        ("a_InRelease", "Sat, 11 Jul 2026 10:16:37 UTC"),
        ("b_Release", "Sun, 12 Jul 2026 00:00:00 UTC"),
    ):
        (lists / name).write_text(f"Origin: Debian\nDate: {date}\nDate: Mon, 13 Jul 2026 00:00:00 UTC\n")
    script = f'root=$1\n{mmdebstrap_hook.EPOCHS["release"]}\necho "$SOURCE_DATE_EPOCH"'
    done = subprocess.run(["sh", "-euc", script, "sh", tmp_path], check=True, capture_output=True, text=True)
    assert done.stdout == "1783814400\n"


# -- presets


def test_presets_are_applied_by_the_roots_own_systemctl_if_that_can_run_here(folder: Path) -> None:
    made = load(folder, TEXT + "presets = true\n")
    assert 'chroot "$root" systemctl --quiet preset-all' in mmdebstrap_hook.text(made, folder)
    foreign = load(folder, 'arch = "s390x"\n' + TEXT + 'presets = true\n[card]\nfirmware = "kernel"\n')
    assert 'systemctl --quiet --root="$root" preset-all' in mmdebstrap_hook.text(foreign, folder)
    assert "preset-all" not in mmdebstrap_hook.text(load(folder, TEXT), folder)
