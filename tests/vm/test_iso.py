"""ISO images boot, by either firmware, from a CD and from a USB stick."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from obuild.executors.qemu import argv, machine, ssh
from obuild.executors.qemu.machine import Machine
from obuild.executors.qemu.shape import Shape
from obuild.host import qemu_img
from obuild.host.process import CancelScope
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
    """A machine with the image as a medium, and an empty disk of `disk` bytes, `folder`/disk.qcow2."""
    image = folder / "disk.qcow2"
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


def see_installer(images: Path, folder: Path, firmware: str, medium: tuple[str, ...]) -> None:
    size = (images / "pg.raw").stat().st_size
    with booted(folder, images / "pg.installer.iso", firmware, medium, disk=size + (8 << 20)) as running:
        running.power_off(ask=False)
    subprocess.run(["qemu-img", "compare", images / "pg.raw", folder / "disk.qcow2"], check=True)


def test_a_live_system_runs(shared: Program, images: Path, tmp_path: Path) -> None:
    see_live(shared, images, tmp_path, "bios", DISK)


def test_an_installer_writes_the_disk(images: Path, tmp_path: Path) -> None:
    see_installer(images, tmp_path, "bios", DISK)


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
