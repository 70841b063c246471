"""Files that a guest has only while a command runs. The guest is a folder, and the command is the test."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from obuild.errors import MachineError
from obuild.executors.native import lent
from obuild.executors.native.guest_path import Places
from tests.support.disks import small_file_system

HOSTS = "nameserver 192.0.2.1\n"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A guest that has Debian's packages, and was last changed in 1970."""
    ours = tmp_path / "resolv.conf"
    ours.write_text(HOSTS)
    monkeypatch.setattr(lent, "_OURS", ours)
    root = tmp_path / "root"
    for folder in ("etc", "usr/bin", "usr/sbin"):
        (root / folder).mkdir(parents=True)
    (root / "usr/bin/dpkg").touch()
    (root / "etc/resolv.conf").write_text("guest\n")
    for folder in ("etc", "usr/sbin"):
        os.utime(root / folder, (1000, 1000))
    return root


def listing(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_command_finds_our_files_and_the_guests_own_return(root: Path) -> None:
    with lent.lent(Places(root), network=True):
        assert (root / "etc/resolv.conf").read_text() == HOSTS
        assert (root / "usr/sbin/policy-rc.d").read_text().endswith("exit 101\n")
        assert (root / "usr/sbin/policy-rc.d").stat().st_mode & 0o777 == 0o755
    assert listing(root / "etc") == {"resolv.conf": "guest\n"}
    assert listing(root / "usr/sbin") == {}
    assert {(root / folder).stat().st_mtime for folder in ("etc", "usr/sbin")} == {1000.0}


def test_without_a_network_the_guest_keeps_its_own_servers(root: Path) -> None:
    with lent.lent(Places(root), network=False):
        assert listing(root / "etc") == {"resolv.conf": "guest\n"}


def test_a_guest_without_dpkg_gets_no_policy(root: Path) -> None:
    (root / "usr/bin/dpkg").unlink()
    with lent.lent(Places(root), network=False):
        assert listing(root / "usr/sbin") == {}


def test_a_symlink_returns_as_one(root: Path) -> None:
    (root / "etc/resolv.conf").unlink()
    (root / "etc/resolv.conf").symlink_to("/run/systemd/resolve/stub-resolv.conf")
    with lent.lent(Places(root), network=True):
        assert (root / "etc/resolv.conf").read_text() == HOSTS
    assert str((root / "etc/resolv.conf").readlink()) == "/run/systemd/resolve/stub-resolv.conf"


def test_what_the_command_writes_stays(root: Path) -> None:
    (root / "usr/sbin/policy-rc.d").write_text("guest\n")
    with lent.lent(Places(root), network=True):
        (root / "etc/resolv.conf").write_text("new\n")
        (root / "usr/sbin/policy-rc.d").chmod(0o700)
    assert listing(root / "etc") == {"resolv.conf": "new\n"}
    assert (root / "usr/sbin/policy-rc.d").stat().st_mode & 0o777 == 0o700


def test_what_the_command_removes_stays_away(root: Path) -> None:
    (root / "usr/sbin/policy-rc.d").write_text("guest\n")
    with lent.lent(Places(root), network=True):
        (root / "etc/resolv.conf").unlink()
        (root / "usr/sbin/policy-rc.d").unlink()
    assert listing(root / "etc") == {}
    assert listing(root / "usr/sbin") == {}


def test_the_guests_own_return_after_an_error(root: Path) -> None:
    with pytest.raises(MachineError, match="lost"), lent.lent(Places(root), network=True):
        raise MachineError("lost")
    assert listing(root / "etc") == {"resolv.conf": "guest\n"}


def test_what_is_in_the_way_is_named(root: Path) -> None:
    (root / "etc/.resolv.conf.obuild").mkdir()
    with (
        pytest.raises(MachineError, match=r"/etc/resolv\.conf cannot be written in the guest: Is a directory"),
        lent.lent(Places(root), network=True),
    ):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_full_disk_is_told_and_nothing_has_changed(root: Path, tmp_path: Path) -> None:
    with small_file_system(tmp_path / "image", tmp_path / "small", 1 << 20) as small:
        shutil.copytree(root, small, dirs_exist_ok=True)
        policy = small / "usr/sbin/policy-rc.d"
        policy.write_text("guest\n")
        with suppress(OSError), (small / "big").open("wb", buffering=0) as big:
            while big.write(bytes(1024)):
                pass
        with (
            pytest.raises(MachineError, match=r"policy-rc\.d cannot be written in the guest: No space") as caught,
            lent.lent(Places(small), network=False),
        ):
            pass
        assert "obuild base resize" in caught.value.hint
        assert listing(small / "usr/sbin") == {"policy-rc.d": "guest\n"}
        assert listing(small / "etc") == {"resolv.conf": "guest\n"}
        with pytest.raises(MachineError, match=r"/srv cannot be written in the guest"):
            lent.placeholder(Places(small), "/srv/secret").__enter__()


def test_a_folder_that_became_a_symlink_to_the_host_is_not_followed(root: Path, tmp_path: Path) -> None:
    host = tmp_path / "host"
    names = ("policy-rc.d", "resolv.conf", ".resolv.conf.obuild", "secret")
    host.mkdir()
    for name in names:
        (host / name).write_text("host\n")
    places = Places(root)
    with lent.lent(places, network=True), lent.placeholder(places, "/srv/deep/secret") as target:
        assert (root / target[1:]).read_text() == ""
        for folder in (root / "etc", root / "usr/sbin", root / "srv/deep"):
            folder.rename(folder.with_name("moved"))
            folder.symlink_to(host)
    assert listing(host) == dict.fromkeys(names, "host\n")
    assert listing(root / "moved") == {"resolv.conf": "guest\n"}
    assert listing(root / "usr/moved") == {}
    assert listing(root / "srv/moved") == {}


def test_a_placeholder_and_its_folders_are_removed_unless_used(root: Path) -> None:
    places = Places(root)
    with lent.placeholder(places, "/srv/deep/secret"):
        assert (root / "srv/deep/secret").exists()
    assert not (root / "srv").exists()
    with lent.placeholder(places, "/srv/deep/secret"):
        (root / "srv/other").write_text("kept")
    assert listing(root / "srv") == {"other": "kept"}
    with lent.placeholder(places, "/srv/other"):
        pass
    assert listing(root / "srv") == {"other": "kept"}
