"""What a host lacks is said before anything is made."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from obuild.errors import UsageError
from obuild.executors.native import requirements


def refused(*words: str) -> None:
    """Check the host; it must be refused with these words, and with the way out."""
    with pytest.raises(UsageError) as caught:
        requirements.see_host()
    assert caught.value.exit_code == 2
    assert "--store=qemu" in caught.value.hint
    for word in words:
        assert word in f"{caught.value.message} {caught.value.hint}"


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A host on which we have the rights, whose devices are in a folder."""
    for name in ("_see_rights", "_see_root", "_see_cgroups"):
        monkeypatch.setattr(requirements, name, lambda: None)
    for name in ("fuse", "loop-control"):
        (tmp_path / name).touch()
    monkeypatch.setattr(requirements, "_FUSE", tmp_path / "fuse")
    monkeypatch.setattr(requirements, "_LOOP_CONTROL", tmp_path / "loop-control")
    modules = {tmp_path / "fuse": "fuse", tmp_path / "loop-control": "loop"}
    monkeypatch.setattr(requirements, "_MODULES", modules)
    return tmp_path


def test_who_is_not_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    refused("you are not root")


@pytest.mark.parametrize(("device", "module"), [("fuse", "fuse"), ("loop-control", "loop")])
def test_a_missing_device_is_named(able: Path, device: str, module: str) -> None:
    (able / device).unlink()
    refused(f"{able / device}, which is missing", f"modprobe {module}", f"--device={able / device}")


@pytest.mark.parametrize(
    ("code", "said"), [(errno.EPERM, "cannot be opened: Operation not permitted"), (errno.ENODEV, "does not work")]
)
def test_a_device_that_a_container_may_not_open(
    able: Path, monkeypatch: pytest.MonkeyPatch, code: int, said: str
) -> None:
    real = os.open

    def open_device(path: Path, flags: int, *more: int, **others: int) -> int:
        if path == able / "fuse":
            raise OSError(code, os.strerror(code))
        return real(path, flags, *more, **others)

    monkeypatch.setattr(os, "open", open_device)
    refused(f"{able / 'fuse'}, which {said}")


def test_loop_devices_that_are_used_up(able: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def used_up(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("fcntl.ioctl", used_up)
    refused("no loop device is free", "losetup -a")


def test_a_loop_device_that_a_container_does_not_have(able: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.ioctl", lambda *_: 987654)
    refused("/dev/loop987654, which is missing", "mknod -m 660 /dev/loop987654 b 7 987654")


def programs(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    """Have only these programs."""
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_a_missing_container_runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shutil.which", lambda name, path=None: None)
    with pytest.raises(UsageError, match="runc is not installed") as caught:
        requirements.find_runtime()
    assert "apt install runc" in caught.value.hint


@pytest.mark.parametrize("version", ["0.1.1", "1.0.0-rc95+ds1", "1.0.0", "1.1.5+ds1", "1.2.0", "2.0.0"])
def test_the_version_of_runc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str) -> None:
    programs(tmp_path, monkeypatch, runc=f"echo 'runc version {version}'; echo 'spec: 1.0'")
    if version.startswith("0."):
        with pytest.raises(UsageError, match=r"runc 0\.1\.1 is too old: native steps need 1\.0 or newer"):
            requirements.find_runtime()
    else:
        assert requirements.find_runtime() == "runc"


def test_crun_comes_before_runc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    programs(tmp_path, monkeypatch, crun="exit 1", runc="exit 1")
    assert requirements.find_runtime() == "crun"


def test_runc_is_asked_for_its_version_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    programs(tmp_path, monkeypatch, runc=f"echo >>{tmp_path}/asked; echo 'runc version 1.1.5'")
    for _ in range(2):
        assert requirements.find_runtime(tmp_path / "memo") == "runc"
    assert (tmp_path / "asked").read_text() == "\n"


def entry(folder: Path, *lines: str) -> None:
    (folder / "qemu-riscv64").write_text("\n".join((*lines, "offset 0", "")))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ((), "programs for riscv64 do not run on this host"),
        (("disabled", "interpreter /usr/bin/qemu-riscv64", "flags: PF"), "do not run on this host"),
        (("enabled", "interpreter /usr/bin/qemu-riscv64", "flags: P"), "but not in containers"),
    ],
)
def test_an_architecture_that_does_not_run_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lines: tuple[str, ...], said: str
) -> None:
    monkeypatch.setattr(requirements, "BINFMT", tmp_path)
    if lines:
        entry(tmp_path, *lines)
    with pytest.raises(UsageError, match=said) as caught:
        requirements.see_arch("riscv64")
    assert "apt install qemu-user-static; --store=qemu" in caught.value.hint


def test_architectures_that_run_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(requirements, "BINFMT", tmp_path)
    requirements.see_arch(os.uname().machine)
    entry(tmp_path, "enabled", "interpreter /usr/bin/qemu-riscv64", "flags: POCF")
    requirements.see_arch("riscv64")
