"""Trees with one of everything, and what there is to see of a tree."""

from __future__ import annotations

import ctypes
import os
import random
import stat
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

from obuild.host.trees import root
from obuild.host.trees.folder import Folder
from obuild.host.trees.nodes import FileSystem, Node, Tree, content
from tests.support.disks import by_hand

#: cap_net_raw=ep, and u::rwx,u:7:r--,g::r-x,m::r-x,o::---, as setxattr(2) wants them.
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in ((1, 7, 0xFFFFFFFF), (2, 4, 7), (4, 5, 0xFFFFFFFF), (16, 5, 0xFFFFFFFF), (32, 0, 0xFFFFFFFF))
)


#: Of fallocate(2): make a hole, and keep the size.
_PUNCH_HOLE = 2 | 1


def populate(top: Path) -> None:
    """A tree with one of everything."""
    for name in ("etc", "usr/bin", "many", "links", "d" * 120):
        (top / name).mkdir(parents=True)
    (top / "etc/os-release").symlink_to("../usr/os-release")
    (top / "usr/os-release").write_text("ID=test\n")
    (top / "usr/abs").symlink_to("/usr/bin")
    (top / "usr/loop").symlink_to("loop")
    (top / "links/long").symlink_to("x//" + "y" * 200)
    (top / os.fsdecode(b"links/\xff\xfe")).write_bytes(b"not UTF-8")
    for number in range(300):
        (top / f"many/a-name-that-is-not-short-{number}").write_bytes(b"x" * number)
    setuid = top / "usr/bin/su"
    setuid.write_bytes(os.urandom(300_000))
    os.chown(setuid, 70_000, 3_000_000)
    setuid.chmod(0o6755)
    os.link(setuid, top / "links/hard")
    os.setxattr(setuid, "security.capability", CAPABILITY)
    os.setxattr(top / "etc", "system.posix_acl_access", ACL)
    os.setxattr(top / "etc", "system.posix_acl_default", ACL)
    os.setxattr(top / "many", "user.large", b"\xff=\n" * 200)
    os.setxattr(top / "links/long", "trusted.of-a-link", b"1", follow_symlinks=False)
    for name, kind in (("char", stat.S_IFCHR), ("block", stat.S_IFBLK)):
        os.mknod(top / f"links/{name}", 0o640 | kind, os.makedev(259, 70_000))
    os.mknod(top / "links/old", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    os.mkfifo(top / "links/fifo")
    os.mknod(top / "links/socket", 0o600 | stat.S_IFSOCK)
    with (top / ("e" * 130)).open("wb") as file:
        for place in (0, 1 << 20, 6 << 20):
            file.seek(place)
            file.write(b"data" * 2000)
        file.truncate(40 << 20)
    (top / "empty").touch()
    with (top / "hole").open("wb") as file:
        file.truncate(1 << 20)
    os.utime(top / "empty", (-1, -1))
    os.utime(top / "hole", (5_000_000_000, 5_000_000_000))


def populate_more(top: Path) -> None:
    """What needs more than one block of every kind, and every way to keep data. It is the same each time."""
    chance = random.Random(1)
    (top / "very-many").mkdir()
    for number in range(3000):
        (top / f"very-many/another-name-that-is-not-short-{number}").touch()
    for number in range(0, 3000, 3):
        (top / f"very-many/another-name-that-is-not-short-{number}").unlink()
    holes(top / "fragments", chance.randbytes(4 << 20), 4096)
    fallocate(top / "reserved", "--length", "1MiB")
    with (top / "reserved").open("r+b") as file:
        file.seek(300_000)
        file.write(b"x" * 5000)
    fallocate(top / "empty", "--keep-size", "--length", "1MiB")
    (top / "text").write_text("".join(f"{n} {chance.random()} the quick brown fox\n" for n in range(60_000)))
    (top / "short-text").write_text("abc " * 300)
    (top / "mixed").write_bytes(bytes(70_000) + b"q" * 9000 + chance.randbytes(10_000) + b"a" * 50_000)
    for number in range(60):
        os.setxattr(top / "text", f"user.name-{number}", chance.randbytes(number * 2))
    os.setxattr(top / "text", "user.larger", chance.randbytes(1500))
    (top / "links/longer").symlink_to("y" * 700)
    (top / "links/longest").symlink_to("y" * 1023)
    os.setxattr(top / "usr", "security.selinux", b"system_u:object_r:usr_t:s0\0")
    os.utime(top / "usr", (-5.5, -5.5))


def holes(path: Path, content: bytes, every: int) -> None:
    """A file with this content, and a hole in the first half of every so many bytes."""
    path.write_bytes(content)
    with path.open("r+b") as file:
        os.fsync(file.fileno())
        libc = ctypes.CDLL(None, use_errno=True)
        for at in range(0, len(content), every):
            place = ctypes.c_long(at), ctypes.c_long(every // 2)
            assert libc.fallocate(file.fileno(), _PUNCH_HOLE, *place) == 0, os.strerror(ctypes.get_errno())


def fallocate(path: Path, *options: str) -> None:
    """Allocate space for a file, and do not write it."""
    subprocess.run(["fallocate", *options, path], check=True)


class Mounted(Folder):
    """A mounted file system. XFS shows access control lists by two names."""

    def xattrs(self, node: Node) -> dict[str, bytes]:
        found = super().xattrs(node)
        return {name: value for name, value in found.items() if not name.startswith("trusted.SGI_ACL_")}


def seen(tree: Tree) -> Iterator[tuple[object, ...]]:
    """All that there is to see of a tree; which inode a file has is not, but who shares it."""
    first: dict[tuple[FileSystem, int], str] = {}
    for node in tree.walk():
        if node.is_folder:
            node = node._replace(size=0, links=0)
        if not stat.S_ISSOCK(node.mode):
            data = content(node) if node.is_file else b""
            target = node.source.target(node) if node.is_link else ""
            shared = first.setdefault((node.source, node.inode), node.path)
            yield (*node[1:2], *node[3:10], shared, data, target, node.source.xattrs(node))


def as_linux_sees_it(image: Path, kind: str) -> list[tuple[object, ...]]:
    """All that is to see of a raw image, compared with what a read-only mount of it shows."""
    with by_hand(image, kind, "ro,loop") as top:
        expected = [*seen(Tree({"": Mounted(top)}))]
    with root.of_raw(image) as tree:
        found = [*seen(tree)]
    assert [each[0] for each in found] == [each[0] for each in expected]
    for one, other in zip(found, expected, strict=True):
        assert one == other
    return found
