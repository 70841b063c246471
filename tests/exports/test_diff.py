"""What differs between two layers."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from obuild.exports.diff import ChangedFile, ChangedPackage, Differences, Owners, compare, digest
from obuild.guests import profile
from obuild.host import nbd, qemu_img
from obuild.host.trees import root
from obuild.host.trees.ext.files import Ext
from obuild.host.trees.folder import Folder
from obuild.host.trees.nodes import Node, Tree
from obuild.plan.steps import Chain
from obuild.store.layers import Store
from tests.support import odd
from tests.support.disks import START, ext4_disk
from tests.support.layers import make_all


def status(**versions: str) -> str:
    """What dpkg says of installed packages."""
    fields = "Package: {}\nStatus: install ok installed\nArchitecture: amd64\nVersion: {}\n"
    return "\n".join(fields.format(*each) for each in versions.items())


@contextmanager
def trees(*images: Path) -> Iterator[list[Tree]]:
    """The trees of images."""
    with ExitStack() as stack:
        disks = [stack.enter_context(nbd.disk_of(image)) for image in images]
        yield [root.of_disk(disk) for disk in disks]


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, Path]:
    """Two layers, the second on the first, with much that is different."""
    (tmp_path / "old").write_text(status(same="1", gone="1", newer="1"))
    (tmp_path / "new").write_text(status(same="1", added="2", newer="3"))
    (tmp_path / "big").write_bytes(os.urandom(500_000))
    (tmp_path / "one").write_text("one")
    (tmp_path / "two").write_text("two")
    made = [f"mkdir {name}" for name in ("etc", "usr", "var", "var/lib", "var/lib/dpkg", "d", "d/e")]
    made += [f"write {tmp_path}/{source} {path}" for source, path in WRITTEN]
    raw = ext4_disk(tmp_path / "disk.raw", *made, "symlink link one", "mknod null c 1 3", size=16 << 20)
    below, image = tmp_path / "below.qcow2", tmp_path / "above.qcow2"
    qemu_img.pack(raw, below)
    changed = [
        *("rm var/lib/dpkg/status", f"write {tmp_path}/new var/lib/dpkg/status"),
        *("rm etc/text", f"write {tmp_path}/two etc/text", "set_inode_field mode mode 0100600"),
        *("set_inode_field owner uid 7", "rm link", "symlink link two", "rm null", "mknod null c 1 5"),
        *("rm d/gone", "mkdir d/new", "rm type", "mkdir type", f"ea_set xattr user.x {tmp_path}/x"),
        "set_inode_field touched mtime @1",
    ]
    for command in changed:
        subprocess.run(["debugfs", "-w", "-R", command, f"{raw}?offset={START}"], check=True, capture_output=True)
    qemu_img.create_overlay(image, below.name)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, tmp_path / "full.qcow2"], check=True)
    # rebasing in safe mode keeps what differs, as a guest's writes would
    full = tmp_path / "full.qcow2"
    subprocess.run(["qemu-img", "rebase", "-f", "qcow2", "-b", below.name, "-F", "qcow2", full], check=True)
    full.replace(image)
    return below, image


WRITTEN = [
    *(("old", "var/lib/dpkg/status"), ("big", "big"), ("one", "etc/text"), ("one", "mode"), ("one", "owner")),
    *(("one", "d/gone"), ("one", "type"), ("one", "xattr"), ("one", "touched")),
]

PACKAGES = (
    ChangedPackage("added", "amd64", "", "2"),
    ChangedPackage("gone", "amd64", "1", ""),
    ChangedPackage("newer", "amd64", "1", "3"),
)
FILES = {
    "/d/gone": ("removed", ()),
    "/d/new": ("added", ()),
    "/etc/text": ("changed", ("content",)),
    "/link": ("changed", ("target",)),
    "/mode": ("changed", ("mode",)),
    "/null": ("changed", ("device",)),
    "/owner": ("changed", ("owner",)),
    "/type": ("changed", ("type",)),
    "/var/lib/dpkg/status": ("changed", ("content",)),
    "/xattr": ("changed", ("xattrs",)),
}


def test_what_differs_is_named(images: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    pieces = Ext.pieces

    def noted(self: Ext, file: Node) -> object:
        read.append(file.path)
        return pieces(self, file)

    monkeypatch.setattr(Ext, "pieces", noted)
    with trees(*images) as (old, new):
        found = compare(old, new, Owners(*images))
        assert found.packages == PACKAGES
        assert {file.path: (file.change, file.what) for file in found.files} == FILES
        assert "big" not in read  # it is in the same place of the same image
        assert found == compare(old, new)
        assert "big" in read
        assert compare(old, old) == Differences((), ())
        back = compare(new, old)
        assert [file.path for file in back.files] == [file.path for file in found.files]
        assert ChangedFile("/d/gone", "added", (), None, 3) in back.files


def test_the_layers_of_another_chain_are_compared_by_content(images: tuple[Path, Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy.qcow2"
    qemu_img.flat_copy(images[1], copy)
    with trees(images[1], copy) as (old, new):
        found = compare(old, new, Owners(images[1], copy))
    assert found == Differences((), ())


def test_commands_read_layers_of_a_store(
    images: tuple[Path, Path], store: Store, chain: Callable[[str], Chain]
) -> None:
    ids = make_all(store, chain("(run (shell one))"))
    for id, image in zip(ids, images, strict=True):
        qemu_img.flat_copy(image, store.layer(id).image.with_name("new"))
        store.layer(id).image.with_name("new").replace(store.layer(id).image)
    where = f"--store=qemu:{store.root}"

    def run(*args: str, code: int = 0) -> tuple[str, str]:
        ended, out, err = odd.run((*args, where))
        assert "Traceback" not in err
        assert ended == code, err
        return out, err

    shown = json.loads(run("diff", *ids, "--json")[0])
    assert [package["name"] for package in shown["packages"]] == ["added", "gone", "newer"]
    assert {file["path"] for file in shown["files"]} == FILES.keys()
    lines = run("diff", *ids)[0].splitlines()
    assert lines[:3] == ["+ package added:amd64 2", "- package gone:amd64 1", "~ package newer:amd64 1 -> 3"]
    assert {"- /d/gone 3 B", "+ /d/new", "~ /etc/text content"} < set(lines)
    assert run("diff", ids[0], ids[0]) == ("", "obuild: the layers have the same packages and files\n")
    document = json.loads(run("sbom", ids[1][:12])[0])
    assert [each["name"] for each in document["components"]] == ["added", "newer", "same"]
    assert json.loads(run("sbom", ids[1], "--format=spdx")[0])["spdxVersion"] == "SPDX-2.3"
    assert "did you mean 'spdx'?" in run("sbom", ids[1], "--format=spd", code=2)[1]
    (store.layer(ids[0]).path / profile.NAME).write_text('os = "windows"\n')
    assert "only the files of Linux layers can be read" in run("sbom", ids[1], code=2)[1]


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.seek(3 << 20)
        file.write(b"x" * 5000)
        file.truncate(8 << 20)


@pytest.mark.parametrize(
    "change", [lambda data: data, lambda data: data[:-1] + b"x", lambda data: b"x" + data[1:]]
)
def test_a_digest_does_not_depend_on_holes(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    sparse(tmp_path / "holes")
    data = (tmp_path / "holes").read_bytes()
    (tmp_path / "full").write_bytes(change(data))
    one, two = Tree({"": Folder(tmp_path)}).children(Tree({"": Folder(tmp_path)}).root())
    assert (digest(one) == digest(two)) == (change(data) == data)
