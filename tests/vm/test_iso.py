"""ISO images boot, by either firmware, from a CD and from a USB stick."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from obuild.executors.qemu import argv, machine, ssh
from obuild.executors.qemu.machine import Machine
from obuild.executors.qemu.shape import Shape
from obuild.exports.disk import Disk, Options
from obuild.exports.formats import installer_iso
from obuild.guests.profile import Card
from obuild.host import qemu_img, sparse
from obuild.host.process import CancelScope
from obuild.plan.keys import LayerId
from tests.support import disks
from tests.support.program import Program

pytestmark = [pytest.mark.vm, pytest.mark.long]

#: How the machine sees the image. The quick way is a disk: to firmware it is like a USB stick.
DISK = ("-device", "virtio-blk-pci,drive=iso,bootindex=0")
CD = ("-device", "ide-cd,drive=iso,bootindex=0")
USB = ("-device", "qemu-xhci", "-device", "usb-storage,drive=iso,bootindex=0")

MATRIX = [
    pytest.param("bios", CD, id="bios-cd"),
    pytest.param("bios", USB, id="bios-usb"),
    pytest.param("uefi", CD, id="uefi-cd"),
    pytest.param("uefi", USB, id="uefi-usb"),
]


@pytest.fixture(scope="module")
def images(shared: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pg.iso, pg.installer.iso and pg.raw of a layer, whose kernel has no drivers for media."""
    folder = tmp_path_factory.mktemp("iso")
    spec = folder / "test.spec"
    spec.write_text('((from micro) (run (shell "echo exported >/marker")))')
    shared.build(spec, folder, "-t", "iso")
    types = ("--type=iso", "--type=installer-iso", "--type=raw")
    done = shared("export", "iso", *types, "--name=pg", "--shrink", "--unattended", "-o", folder)
    assert "has no driver" in done.stderr
    return folder


@pytest.fixture(autouse=True)
def medium_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own disk, which is empty, is not the first that its firmware tries."""

    def changed(*args: Any, **kwargs: Any) -> list[str]:
        words = argv.qemu_argv(*args, **kwargs)
        return [str(word).replace("drive=disk0,bootindex=0", "drive=disk0") for word in words]

    monkeypatch.setattr(machine, "qemu_argv", changed)


@contextmanager
def booted(
    folder: Path, iso: Path, firmware: str, medium: tuple[str, ...], *, disk: int = 1 << 20
) -> Iterator[Machine]:
    """A machine with the image as a medium, and the disk `folder`/disk.qcow2: an empty one, if it is not there."""
    image = folder / "disk.qcow2"
    if not image.exists():
        qemu_img.create_empty(image, size=disk)
    drive = ("-drive", f"if=none,id=iso,format=raw,readonly=on,file={iso}")
    shape = Shape(firmware=firmware, memory=512 << 20, boot_time=300)
    with machine.start(shape, image, CancelScope(), network=False, extra=(*drive, *medium)) as running:
        yield running


def told(running: Machine, key: Path, script: str) -> str:
    output = io.BytesIO()
    with ssh.connect(running, login="root", key=key) as connection:
        connection.fetch("sh", script.encode(), output, what="the script")
    return output.getvalue().decode()


def see_live(program: Program, images: Path, folder: Path, firmware: str, medium: tuple[str, ...]) -> None:
    script = "cat /marker; touch /new && echo written; grep ' / ' /proc/mounts; cat /etc/fstab"
    with booted(folder, images / "pg.iso", firmware, medium) as running:
        marker, written, root, *table = told(running, program.store / "state/ssh/id_ed25519", script).splitlines()
        running.quit()
    assert (marker, written, root.split()[0]) == ("exported", "written", "overlay")
    assert table
    assert all(line.startswith("#") for line in table)


def see_installer(images: Path, folder: Path, firmware: str, medium: tuple[str, ...]) -> Path:
    """Install the layer; returns the image of the disk that has it."""
    size = (images / "pg.raw").stat().st_size
    with booted(folder, images / "pg.installer.iso", firmware, medium, disk=size + (8 << 20)) as running:
        running.power_off(ask=False)
    subprocess.run(["qemu-img", "compare", images / "pg.raw", folder / "disk.qcow2"], check=True)
    return folder / "disk.qcow2"


def test_a_live_system_runs(shared: Program, images: Path, tmp_path: Path) -> None:
    see_live(shared, images, tmp_path, "bios", DISK)


def test_an_installer_writes_a_disk_that_boots(shared: Program, images: Path, tmp_path: Path) -> None:
    disk = see_installer(images, tmp_path, "bios", DISK)
    with machine.start(Shape(memory=128 << 20, boot_time=300), disk, CancelScope(), network=False) as running:
        assert told(running, shared.store / "state/ssh/id_ed25519", "cat /marker") == "exported\n"
        running.quit()


def test_an_installer_that_reads_back_something_else_says_so(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not power off, as it would after a success: the message stays on the screen."""
    monkeypatch.setattr(sparse, "sha256", lambda path, heard: "0" * 64)
    iso = made(images, tmp_path, unattended=True)
    with booted(tmp_path, iso, "bios", DISK, disk=(images / "pg.raw").stat().st_size) as running:
        wait_for(running, "obuild: /dev/vda does not hold what was written: it may be damaged")
        console = running.console(10_000)
        assert running.qmp.execute("query-status")["status"] == "running"
        running.quit()
    assert "Installed" not in console
    assert console.count("it may be damaged") == 1


@pytest.mark.parametrize(("firmware", "medium"), MATRIX)
def test_a_live_system_runs_from_any_medium(
    shared: Program, images: Path, tmp_path: Path, firmware: str, medium: tuple[str, ...]
) -> None:
    see_live(shared, images, tmp_path, firmware, medium)


@pytest.mark.parametrize(("firmware", "medium"), MATRIX)
def test_an_installer_writes_the_disk_from_any_medium(
    images: Path, tmp_path: Path, firmware: str, medium: tuple[str, ...]
) -> None:
    see_installer(images, tmp_path, firmware, medium)


def test_a_live_system_keeps_changes_on_a_partition(shared: Program, images: Path, tmp_path: Path) -> None:
    shared("export", "iso", "--type=iso", "--persist=data", "--name=pg", "-o", tmp_path)
    data = tmp_path / "data.raw"
    with data.open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-L", "data", data], check=True)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", data, tmp_path / "disk.qcow2"], check=True)
    for expected in ("", "kept\n"):
        with booted(tmp_path, tmp_path / "pg.iso", "bios", DISK) as running:
            script = "cat /kept 2>/dev/null; echo kept >/kept; sync"
            assert told(running, shared.store / "state/ssh/id_ed25519", script) == expected
            running.quit()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_a_live_system_of_another_root_is_made_without_a_mount(shared: Program, tmp_path: Path, kind: str) -> None:
    """obuild may not mount here. The kernel of the layer has no driver for its root, and needs none."""
    spec, out = tmp_path / "test.spec", tmp_path / "out"
    spec.write_text('((from micro) (run (shell "echo exported >/marker")))')
    shared.build(spec, tmp_path, "-t", "iso")
    shared("export", "iso", "--type=tar", "--name=files", "-o", tmp_path)
    system = disks.made(tmp_path / "system", 320, f"mkfs.{kind}", "-q")
    with disks.by_hand(system, kind) as top:
        if kind == "btrfs":
            top /= "@"
            subprocess.run(["btrfs", "-q", "subvolume", "create", top], check=True)
        subprocess.run(["tar", "-xpf", tmp_path / "files.tar", "-C", top], check=True)
    qemu_img.pack(disks.partitioned(tmp_path / "disk.raw", system), tmp_path / "disk.qcow2")
    shared("base", "add", tmp_path / "disk.qcow2", "--name", kind)
    spec.write_text(f"((from {kind}))")
    shared.build(spec, tmp_path, "-t", kind)
    unprivileged = ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")
    argv = shared.argv("export", kind, "--type=iso", "--type=tar", "--name=pg", "-o", out)
    subprocess.run([*unprivileged, *argv], check=True)
    assert content_of(out / "pg.tar") == content_of(tmp_path / "files.tar")
    (tmp_path / "machine").mkdir()
    see_live(shared, out, tmp_path / "machine", "bios", DISK)


def content_of(path: Path) -> set[tuple[object, ...]]:
    """What is in a tar file. Which of two names a hard link is may differ."""
    with tarfile.open(path) as opened:
        return {(each.name, each.mode, each.uid, each.gid, each.mtime, each.linkname) for each in opened}


def made(images: Path, folder: Path, **options: Any) -> Path:
    """An installer of the layer, with these options."""
    (folder / "work").mkdir()
    raw = folder / "work/disk.raw"
    raw.hardlink_to(images / "pg.raw")
    disk = Disk(raw, raw.stat().st_size, LayerId("5" * 64), Card(), Options(**options))
    installer_iso.write(disk, out := folder / "work/pg.installer.iso")
    return out


def wait_for(running: Machine, text: str) -> None:
    """Wait until the console has the text. MachineError if the machine ends before."""
    while text not in running.console(10_000):
        running.pause(0.5)


@pytest.mark.parametrize("answer", ["yes", "no"])
def test_an_installer_asks(images: Path, tmp_path: Path, answer: str) -> None:
    size = (images / "pg.raw").stat().st_size
    with booted(tmp_path, made(images, tmp_path), "bios", DISK, disk=size) as running:
        wait_for(running, "Type yes to overwrite /dev/vda")
        for key in (*answer, "ret"):
            running.press(key)
        running.power_off(ask=False)
    status = 0 if answer == "yes" else 1
    done = subprocess.run(["qemu-img", "compare", "-q", images / "pg.raw", tmp_path / "disk.qcow2"])
    assert done.returncode == status
    if answer == "no":
        assert nothing_was_written(tmp_path / "disk.qcow2")


@pytest.mark.parametrize(
    ("options", "smaller", "said"),
    [
        ({"install_disk": "WD-1234"}, 0, "no disk is WD-1234"),
        ({}, 1 << 20, "no disk of this machine can take an image of"),
    ],
)
def test_an_installer_that_finds_no_disk_writes_nothing(
    images: Path, tmp_path: Path, options: dict[str, str], smaller: int, said: str
) -> None:
    size = (images / "pg.raw").stat().st_size - smaller
    iso = made(images, tmp_path, unattended=True, **options)
    with booted(tmp_path, iso, "bios", DISK, disk=size) as running:
        wait_for(running, said)
        running.quit()
    assert nothing_was_written(tmp_path / "disk.qcow2")


def nothing_was_written(disk: Path) -> bool:
    (extent,) = json.loads(subprocess.check_output(["qemu-img", "map", "--output=json", disk]))
    return bool(extent["zero"])
