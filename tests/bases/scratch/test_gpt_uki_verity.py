"""The sealed form of an image: hash tree, initial RAM disk, disk, and what a TPM is expected to hold."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import shutil
import subprocess
import tarfile
from pathlib import Path
from uuid import UUID

import pytest

from obuild.bases import catalog
from obuild.bases.scratch import elf, gpt_uki_verity, initrd, kernel_modules, layouts, measured_boot, verity
from obuild.errors import ObuildError, UsageError
from obuild.host import process
from tests.support import efi
from tests.support.recipes import recipe_of

RECIPE = recipe_of(
    'kind="scratch"\nsize="256M"\n[card]\nfirmware="uefi"\n'
    '[scratch]\nlayout="gpt-uki-verity"\nsuite="bookworm"\ncmdline="quiet"\n'
)


def data(blocks: int) -> bytes:
    return b"".join(hashlib.sha256(bytes([n % 256, n // 256])).digest() * 128 for n in range(blocks))


def test_a_hash_tree_is_that_of_veritysetup(tmp_path: Path) -> None:
    """`veritysetup format data tree --salt=5a… --uuid=…7` of cryptsetup 2.6.1 gave these hashes."""
    (tmp_path / "data").write_bytes(data(300))
    made = verity.tree(tmp_path / "data", identity=UUID(int=7), salt=b"\x5a" * 32)
    assert made.root_hash == "811f23432dbd499cc0f479ac11e01e62f21798c201f4d0fcdb7948f3e68b20db"
    assert made.blocks == 300
    expected = "10c614293989e8772a4cb67a75ebfe1ebd20773f81fc07b7db1ed37bbded8cc4"
    assert hashlib.sha256(made.data).hexdigest() == expected


# -- drivers and libraries


def module(depends: str) -> bytes:
    return b"\x7fELF...\0license=GPL\0depends=" + depends.encode() + b"\0name=x\0"


def modules() -> kernel_modules.Modules:
    files = {
        "dm-verity.ko": module("dm-mod,dm-bufio"),
        "dm-bufio.ko": module("dm-mod"),
        "dm-mod.ko.xz": lzma.compress(module("")),
        "README": b"",
    }
    return kernel_modules.Modules(files, files.__getitem__, ["overlay.ko"])


def test_a_driver_comes_after_those_it_needs() -> None:
    found = modules().closure(["dm_verity", "overlay"], must=True)
    assert list(found) == ["dm_mod.ko", "dm_bufio.ko", "dm_verity.ko"]
    assert found["dm_mod.ko"] == module("")


def test_a_driver_that_no_kernel_has_is_an_error_unless_it_may_lack() -> None:
    assert modules().closure(["nvme"], must=False) == {}
    with pytest.raises(UsageError, match="has no driver nvme"):
        modules().closure(["nvme"], must=True)


def test_a_program_says_what_it_is_loaded_with() -> None:
    program = Path("/bin/ls").resolve()
    told = subprocess.run(["readelf", "-d", "-l", program], check=True, capture_output=True, text=True).stdout
    names = [line.partition("[")[2].rstrip("]\n") for line in told.splitlines() if "(NEEDED)" in line]
    assert list(elf.needed(program.read_bytes())) == names
    assert f"interpreter: {elf.interpreter(program.read_bytes())}]" in told


@pytest.mark.parametrize("program", [b"", b"#!/bin/sh", b"\x7fELF\x01\x01" + bytes(64)])
def test_what_is_no_program_for_linux_is_refused(program: bytes) -> None:
    with pytest.raises(ObuildError, match="not a program for 64 bits"):
        elf.needed(program)


# -- the disk


def parts(folder: Path) -> None:
    """What the hook takes out of a root, with a program of this host in the place of dmsetup."""
    root = folder / "root"
    program = Path("/bin/ls").resolve()
    loader = Path(elf.interpreter(program.read_bytes()))
    kernel = root / "usr/lib/modules/6.1"
    kernel.mkdir(parents=True)
    for name in ("virtio_pci", "virtio_blk", "dm-verity", "squashfs"):
        (kernel / f"{name}.ko").write_bytes(module(""))
    (kernel / "modules.builtin").write_text("kernel/fs/overlayfs/overlay.ko\n")
    for place, source in (("usr/bin/busybox", program), ("usr/sbin/dmsetup", program)):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, root / place)
    libraries = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    paths = [Path(word) for word in libraries.split() if word.startswith("/")]
    for path in {*paths, loader}:
        shutil.copy(path.resolve(), root / "usr/lib" / path.name)
    # aarch64 has a link of the loader's own name beside the folder of libraries.
    (root / "usr/lib/arch").mkdir()
    (root / "usr/lib" / loader.name).rename(root / "usr/lib/arch" / loader.name)
    (root / "usr/lib" / loader.name).symlink_to(f"arch/{loader.name}")
    with tarfile.open(folder / initrd.PARTS, "w") as tar:
        tar.add(root / "usr", "usr")
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where a sealed disk was made."""
    folder = tmp_path_factory.mktemp("made")
    parts(folder)
    taken = {"stub": efi.stub(), "os-release": b"ID=debian\n", "epoch": b"1700000000", "boot.vmlinuz": efi.stub()}
    for name, content in {**taken, "root.squashfs": data(300)}.items():
        (folder / name).write_bytes(content)
    found = gpt_uki_verity.beside(RECIPE, folder)
    assert set(found) == {".verity.raw", ".pcrs.json"}
    return folder


def table(disk: Path) -> list[dict[str, str | int]]:
    told = subprocess.run(["sfdisk", "--json", disk], check=True, capture_output=True).stdout
    return list(json.loads(told)["partitiontable"]["partitions"])


def test_the_kernel_of_a_sealed_disk_knows_the_hash_of_its_root(made: Path) -> None:
    disk = made / "sealed.raw"
    root, tree, system = table(disk)
    assert [each["name"] for each in (root, tree, system)] == ["root", "root-verity", "esp"]
    about = json.loads((made / "pcrs.json").read_text())
    assert (str(root["uuid"]) + str(tree["uuid"])).replace("-", "").lower() == about["root_hash"]
    with disk.open("rb") as file:
        file.seek(int(root["start"]) * 512)
        assert file.read(300 * 4096) == data(300)
        file.seek(int(tree["start"]) * 512)
        assert file.read(8) == b"verity\0\0"
    image = subprocess.run(
        ["mtype", "-i", f"{disk}@@{int(system['start']) * 512}", "::/EFI/BOOT/BOOTX64.EFI"],
        check=True,
        capture_output=True,
    ).stdout
    sections = {name: content for name, (_, content) in efi.sections(image).items()}
    assert sections[".cmdline"].decode() == about["cmdline"]
    assert about["cmdline"].startswith(f"roothash={about['root_hash']} verity.blocks=300 ")
    assert about["cmdline"].endswith(" ro console=ttyS0 quiet")
    assert about["pcrs"]["sha256"] == measured_boot.pcrs(image, sections)


def test_a_sealed_disk_is_the_same_for_the_same_input(made: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    for path in made.iterdir():
        if path.suffix not in (".raw", ".json", ".efi"):
            shutil.copy(path, again)
    gpt_uki_verity.beside(RECIPE, again)
    assert (again / "sealed.raw").read_bytes() == (made / "sealed.raw").read_bytes()


def test_the_initial_ram_disk_is_a_script_that_busybox_runs(made: Path) -> None:
    unpacked = made / "initrd"
    unpacked.mkdir()
    archive = gzip.decompress(initrd.build(made / initrd.PARTS))
    subprocess.run(["busybox", "cpio", "-idm"], input=archive, cwd=unpacked, check=True, capture_output=True)
    subprocess.run(["busybox", "sh", "-n", unpacked / "init"], check=True)
    assert (unpacked / "modules/first").read_text().split() == [
        *("virtio_pci.ko", "virtio_blk.ko", "dm_verity.ko", "squashfs.ko")
    ]
    assert (unpacked / "modules/other").read_text() == ""
    version = subprocess.run(["ldd", unpacked / "sbin/dmsetup"], check=True, capture_output=True, text=True).stdout
    wanted = {Path(word).name for word in version.split() if word.startswith("/") and "ld-linux" not in word}
    assert {path.name for path in (unpacked / "lib").iterdir()} == wanted


def test_a_root_without_what_the_initial_ram_disk_needs_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / initrd.PARTS, "w"):
        pass
    with pytest.raises(UsageError, match=r"the new root has no modules\.builtin"):
        initrd.build(tmp_path / initrd.PARTS)


def test_every_input_changes_what_is_expected_of_a_tpm() -> None:
    sections = {".osrel": b"o", ".cmdline": b"c", ".initrd": b"i", ".linux": efi.stub()}
    image = efi.stub()
    before = measured_boot.pcrs(image, sections)
    for name, changed in ((".osrel", {"11"}), (".cmdline", {"9", "11"}), (".initrd", {"9", "11"})):
        after = measured_boot.pcrs(image, {**sections, name: b"other"})
        assert {number for number in before if after[number] != before[number]} == changed
    other = measured_boot.pcrs(image[:-1] + b"x", sections)
    assert {number for number in before if other[number] != before[number]} == {"4"}


def test_nothing_is_said_of_a_stub_that_may_measure_otherwise() -> None:
    sections = {".osrel": b"", ".cmdline": b"", ".initrd": b"", ".linux": efi.stub()}
    assert set(measured_boot.pcrs(efi.stub(), sections)) == {"4", "9", "11"}
    assert measured_boot.pcrs(efi.stub(version=257), sections) == {}


def test_a_checksum_and_a_signature_do_not_change_what_is_measured_of_a_program() -> None:
    sections = {".osrel": b"", ".cmdline": b"", ".initrd": b"", ".linux": efi.stub()}
    image = bytearray(efi.stub())
    before = measured_boot.pcrs(bytes(image), sections)
    optional = 64 + 24
    image[optional + 64 : optional + 68] = b"\1\2\3\4"
    image[optional + 144 : optional + 152] = len(image).to_bytes(4, "little") + (16).to_bytes(4, "little")
    assert measured_boot.pcrs(bytes(image) + bytes(16), sections) == before


# -- the recipe


def test_a_sealed_form_needs_squashfs_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, **more: None if "squashfs" in name else which(name, **more))
    with pytest.raises(UsageError, match="mksquashfs is not installed") as caught:
        layouts.of(RECIPE).check_host(RECIPE)
    assert caught.value.hint == "apt install squashfs-tools"
    assert process.PACKAGES["mksquashfs"] == "squashfs-tools"


def test_the_sealed_root_has_no_room_for_keys_of_a_store() -> None:
    script = layouts.of(RECIPE).finish(RECIPE).format(here="/w")
    subprocess.run(["sh", "-n"], input=script.encode(), check=True)
    assert "-e $(sed 's|^/||' /w/login-key) etc/ssh/ssh_host_ed25519_key" in script


def test_what_a_tpm_will_hold_is_shown(made: Path, tmp_path: Path) -> None:
    shutil.copy(made / "pcrs.json", tmp_path / "one.pcrs.json")
    lines = catalog.measured(tmp_path / "one.qcow2")
    assert lines[0] == f"sealed {tmp_path}/one.verity.raw"
    assert [line.split(":")[0] for line in lines[1:]] == ["root hash", "PCR 4", "PCR 9", "PCR 11"]
    assert catalog.measured(tmp_path / "other.qcow2") == []
