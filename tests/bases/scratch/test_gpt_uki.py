"""The layout "gpt-uki": what is on the disk, read back with the field's own tools."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from obuild.bases.kind import Recipe
from obuild.bases.scratch import esp, gpt_uki, layouts, root_partition, uki
from obuild.errors import ObuildError, UsageError
from obuild.host import process
from tests.support import efi
from tests.support.recipes import recipe_of

SMALLEST = 'kind="scratch"\nsize="256M"\n'
UKI = '[scratch]\nlayout="gpt-uki"\nsuite="bookworm"\ncmdline="quiet"\n'

RECIPE = recipe_of(f'{SMALLEST}[card]\nfirmware="uefi"\n{UKI}')
ARM = recipe_of(f'arch="arm64"\n{SMALLEST}[card]\nfirmware="uefi"\n{UKI}')


def make(recipe: Recipe, folder: Path) -> Path:
    """A disk with what the hook would have taken out of the root."""
    folder.mkdir()
    boot = {"boot.vmlinuz": b"K" * 5000, "boot.initrd": b"I" * 700}
    taken = {"stub": efi.stub(), "os-release": b"ID=debian\n", "epoch": b"1700000000", **boot}
    for name, content in taken.items():
        (folder / name).write_bytes(content)
    disk = folder / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(recipe.size)
    gpt_uki.make_bootable(recipe, disk, folder)
    return disk


def test_uefi_finds_the_kernel_on_a_partition_behind_the_root(tmp_path: Path) -> None:
    disk = make(RECIPE, tmp_path / "work")
    table = json.loads(subprocess.run(["sfdisk", "--json", disk], check=True, capture_output=True).stdout)
    root, system = table["partitiontable"]["partitions"]
    assert (root["start"] * 512, root["size"] * 512) == (1 << 20, (256 - 130) << 20)
    assert (root["name"], root["type"]) == ("root", "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709")
    assert (system["name"], system["type"]) == ("esp", "C12A7328-F81F-11D2-BA4B-00A0C93EC93B")
    assert system["start"] == root["start"] + root["size"]
    start = system["start"] * 512
    found = subprocess.run(
        ["mtype", "-i", f"{disk}@@{start}", "::/EFI/BOOT/BOOTX64.EFI"], check=True, capture_output=True
    ).stdout
    read = {name: content for name, (_, content) in efi.sections(found).items()}
    assert read[".linux"] == b"K" * 5000
    assert read[".initrd"] == b"I" * 700
    assert read[".osrel"] == b"ID=debian\n"
    identity = root_partition.disk_id(RECIPE)
    assert read[".cmdline"] == f"root=UUID={identity} rw console=ttyS0 quiet".encode()


def test_the_disk_is_the_same_for_the_same_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = make(RECIPE, tmp_path / "one")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    run = process.run

    def tomorrow(argv: list[str | Path], **more: object) -> bytes:
        return run(["faketime", "-f", "+1d", *argv], **more)  # type: ignore[arg-type]

    monkeypatch.setattr(process, "run", tomorrow)
    two = make(RECIPE, tmp_path / "another place")
    assert one.read_bytes() == two.read_bytes()


def test_each_architecture_has_its_own_names(tmp_path: Path) -> None:
    disk = make(ARM, tmp_path / "work")
    start = (256 - 129) << 20
    told = subprocess.run(["mdir", "-b", "-i", f"{disk}@@{start}", "::/EFI/BOOT"], check=True, capture_output=True)
    assert told.stdout.decode().split() == ["::/EFI/BOOT/BOOTAA64.EFI"]
    assert b"console=ttyAMA0" in (tmp_path / "work/uki.efi").read_bytes()


def test_the_sections_of_a_kernel_image_are_where_binutils_finds_them(tmp_path: Path) -> None:
    image = tmp_path / "image.efi"
    image.write_bytes(uki.build(efi.stub(), {".a": b"1" * 5000, ".b": b"22"}))
    told = subprocess.run(["objdump", "-h", image], check=True, capture_output=True, text=True).stdout
    rows = [line.split()[1:4] for line in told.splitlines() if line.strip()[:1].isdigit()]
    assert rows == [
        [".text", "00000010", "0000000000001000"],
        [".a", "00001388", "0000000000002000"],
        [".b", "00000002", "0000000000004000"],
    ]


def test_a_stub_without_room_for_sections_is_refused() -> None:
    with pytest.raises(ObuildError, match="no room for more sections"):
        uki.build(efi.stub(room=0), {f".{number}": b"" for number in range(10)})


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", b"MZ" + bytes(100)])
def test_what_is_no_program_for_uefi_is_refused(content: bytes) -> None:
    with pytest.raises(ObuildError, match="not a program for UEFI"):
        uki.build(content, {})


def test_a_kernel_image_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    program = tmp_path / "uki.efi"
    with program.open("wb") as file:
        file.truncate(esp.SIZE)
    with pytest.raises(UsageError, match=r"takes 128.* of 128"):
        esp.write(tmp_path / "none", start=0, arch="x86_64", program=program, identity=UUID(int=1), epoch=0)


@pytest.mark.parametrize(
    ("card", "layout", "hint"),
    [
        ("", "gpt-uki", 'firmware = "uefi" under [card], or layout = "mbr-grub"'),
        ('firmware="kernel"', "gpt-uki", 'layout = "mbr-grub"'),
        ('firmware="uefi"', "mbr-grub", 'firmware = "bios" under [card], or layout = "gpt-uki"'),
    ],
)
def test_a_layout_that_the_firmware_cannot_boot_is_refused(card: str, layout: str, hint: str) -> None:
    with pytest.raises(UsageError, match=rf"mine.toml:6:1: layout '{layout}' is not for firmware = ") as caught:
        recipe_of(f'{SMALLEST}[card]\n{card}\n[scratch]\nlayout="{layout}"\nsuite="bookworm"\n')
    assert hint in caught.value.hint


def test_an_unknown_layout_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"mine.toml:4:1: layout is 'gpt_uki'") as caught:
        recipe_of(f'{SMALLEST}[scratch]\nlayout="gpt_uki"\nsuite="bookworm"\n')
    assert caught.value.hint == "did you mean 'gpt-uki'?"


def test_the_packages_of_a_layout_are_installed() -> None:
    assert RECIPE.options.packages == ("systemd-boot-efi",)


@pytest.mark.parametrize(("program", "package"), [("mformat", "mtools"), ("sfdisk", "fdisk")])
def test_a_host_without_a_tool_is_told_its_package(
    program: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, **more: None if name == program else which(name, **more))
    with pytest.raises(UsageError, match=f"{program} is not installed") as caught:
        layouts.of(RECIPE).check_host(RECIPE)
    assert caught.value.hint == f"apt install {package}"


def test_a_disk_without_room_for_a_root_is_refused() -> None:
    made = replace(RECIPE, size=193 << 20)
    with pytest.raises(UsageError, match="size is 193M, and layout 'gpt-uki' needs 194M"):
        layouts.of(made).check_host(made)
    layouts.of(made).check_host(replace(RECIPE, size=194 << 20))


def test_a_disk_for_uefi_cannot_be_made_for_every_architecture() -> None:
    made = replace(RECIPE, card=replace(RECIPE.card, arch="s390x"))
    with pytest.raises(UsageError, match="cannot make a disk for UEFI on s390x") as caught:
        layouts.of(made).check_host(made)
    assert "x86_64, aarch64" in caught.value.hint
