"""What follows an installation: the disk is checked, SSH is tried, and the image is packed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from obuild.bases import disk_layout, installation, unattended
from obuild.bases.kind import Making
from obuild.bases.unattended import Verdict
from obuild.errors import MachineError, UsageError
from obuild.executors.qemu import machine, ssh
from obuild.executors.qemu.arches import ARCHES
from obuild.executors.qemu.shape import Nvram, Shape
from obuild.host import qemu_img
from obuild.host.qemu_img import Image
from obuild.store.layers import Store
from tests.support.recipes import recipe_of

RECIPE = """
kind = "installer"
size = "1G"
[card]
login = "me"
firmware = "uefi"
[installer.iso]
url = "https://example.org/x.iso"
"""


class Guest:
    """An installed system, which has a screen."""

    def take_picture(self, path: Path) -> None:
        path.write_bytes(b"PNG")


class Machines:
    """The machines that were started: the installer's and the one that must answer SSH."""

    def __init__(self) -> None:
        self.installer: Shape | None = None
        self.proof: Shape | None = None
        self.backing = ""

    def install(self, name: str, shape: Shape, disk: Path, making: Making, **options: object) -> None:
        self.installer = shape
        assert shape.nvram
        shape.nvram.file.write_text("set by the installer")

    @contextmanager
    def start(self, shape: Shape, image: Path, *args: object, **options: object) -> Iterator[Guest]:
        self.proof, self.backing = shape, qemu_img.backing_file(image)
        yield Guest()


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machines:
    """No machine runs, and SSH answers."""
    started = Machines()
    (tmp_path / "defaults").write_text("defaults")
    uefi = ARCHES["x86_64"]._replace(uefi=("/code", str(tmp_path / "defaults"), "ovmf"))
    monkeypatch.setitem(ARCHES, "x86_64", uefi)
    monkeypatch.setattr(unattended, "run", started.install)
    monkeypatch.setattr(unattended, "shape_of", lambda card, making, **options: Shape(firmware=card.firmware))
    monkeypatch.setattr(disk_layout, "check_installed", lambda recipe, disk, work: None)
    monkeypatch.setattr(machine, "start", started.start)
    monkeypatch.setattr(ssh, "connect", contextmanager(lambda running, **options: iter([None])))
    return started


def install(store: Store, folder: Path, *, tpm: bool = False, verify: bool = True) -> Path:
    def no_download(remote: object) -> Path:
        raise AssertionError("something was downloaded")

    (folder / "work").mkdir()
    installation.install(
        recipe_of(RECIPE),
        folder / "mine.qcow2",
        Making(store, folder / "key", "key", print, no_download),
        work=folder / "work",
        read=[],
        memory=1 << 30,
        timeout=60.0,
        judge=lambda running, problem: Verdict(problem),
        tpm=tpm,
        verify=verify,
    )
    return folder / "mine.qcow2"


def test_the_image_and_uefis_variables_are_kept(store: Store, tmp_path: Path, machines: Machines) -> None:
    image = install(store, tmp_path, tpm=True)
    assert qemu_img.inspect(image).virtual_size == 1 << 30
    assert image.with_suffix(".nvram").read_text() == "set by the installer"
    nvram, tpm = tmp_path / "work" / "nvram", tmp_path / "work" / "tpm"
    assert machines.installer is not None
    assert (machines.installer.nvram, machines.installer.tpm) == (Nvram(nvram, kept=True), tpm)
    # The installed system runs on an overlay that is thrown away, and its changes to the variables are lost.
    assert machines.proof is not None
    assert (machines.proof.nvram, machines.proof.tpm) == (Nvram(nvram, kept=False), tpm)
    assert machines.backing == "disk.qcow2"
    assert not (tmp_path / "work" / "proof.qcow2").exists()


def test_an_appliance_is_not_logged_in_to(store: Store, tmp_path: Path, machines: Machines) -> None:
    install(store, tmp_path, verify=False)
    assert machines.proof is None


@pytest.mark.usefixtures("machines")
def test_a_system_that_does_not_answer_ssh_is_a_failure_with_a_picture(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(running: object, *, login: str, key: Path) -> None:
        raise MachineError(f"it does not accept {key} for {login}")

    monkeypatch.setattr(ssh, "connect", refused)
    with pytest.raises(MachineError) as caught:
        install(store, tmp_path)
    picture = store.screens / "mine.png"
    assert caught.value.message == (
        f"mine: cannot log in to the installed system: it does not accept {tmp_path / 'key'} for me\n"
        f"a picture of its screen: {picture}"
    )
    assert "@public_key@" in caught.value.hint
    assert picture.read_bytes() == b"PNG"
    assert not (tmp_path / "mine.qcow2").exists()


def test_an_empty_disk_is_a_failure(tmp_path: Path) -> None:
    disk = tmp_path / "disk.qcow2"
    qemu_img.create_empty(disk, size=1 << 30)
    with pytest.raises(UsageError, match="mine: the installer ended and left no partition on the disk"):
        disk_layout.check_installed(recipe_of(RECIPE), disk, tmp_path)
    assert disk_layout.head(Image(disk, "qcow2", 1 << 30), tmp_path) == bytes(34 * 512)
