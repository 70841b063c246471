"""ISO images of a layer: which kernel they boot, what is on them, and what is refused."""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from obuild.bases.scratch.kernel_modules import Modules
from obuild.errors import ObuildError, UsageError
from obuild.exports.all import FORMATS
from obuild.exports.disk import Disk, Options
from obuild.exports.export import Wanted, export
from obuild.exports.formats import installer_iso, iso
from obuild.exports.iso import initramfs, kernel, medium
from obuild.guests.profile import Card
from obuild.host import partitions, process
from obuild.host.trees.folder import Folder
from obuild.host.trees.nodes import Tree
from obuild.plan.keys import LayerId
from obuild.store.layers import Store
from tests.support.disks import ext4_disk, small_file_system

ID = LayerId("5" * 64)
RELEASE = "6.1.0-9-amd64"

Files = Mapping[str, bytes | str]


def image(release: str = RELEASE) -> bytes:
    """A kernel for x86, as far as it says its version."""
    head = bytearray(1024)
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x20E, 0x100)
    text = f"{release} (builder@host) #1".encode() + b"\0"
    head[0x300 : 0x300 + len(text)] = text
    return bytes(head)


def module(*depends: str) -> bytes:
    return b"\x7fELF\0license=GPL\0depends=" + ",".join(depends).encode() + b"\0"


def modules(*names: str, release: str = RELEASE) -> dict[str, bytes]:
    return {f"lib/modules/{release}/kernel/{name}.ko": module() for name in names}


ALL = (*initramfs.NEEDED, *initramfs.MEDIA)


@pytest.fixture
def tree(tmp_path: Path) -> Callable[[Files], Tree]:
    """Make a tree of files by path. A text is the target of a link."""

    def make(files: Files) -> Tree:
        for name, content in files.items():
            path = tmp_path / "tree" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                path.symlink_to(content)
            else:
                path.write_bytes(content)
        return Tree({"": Folder(tmp_path / "tree")})

    return make


GRUB = b"""\
# linux /comment
menuentry 'Debian' {
\tlinux\t/boot/vmlinuz-6.1.0-9-amd64 root=UUID=12 ro rootflags=subvol=root quiet net.ifnames=0 console=ttyS0 $more
\tinitrd\t/boot/initrd.img-6.1.0-9-amd64
}
menuentry 'older' {
\tlinux\t/boot/vmlinuz-5.10 single
}
"""
ENTRY = b"title Fedora\nlinux /vmlinuz-6.1.0-9-amd64\noptions root=/dev/vda1 ro rhgb\n"


@pytest.mark.parametrize(
    ("files", "cmdline"),
    [
        ({"boot/grub/grub.cfg": GRUB}, "quiet net.ifnames=0"),
        ({"boot/grub2/grub.cfg": GRUB.replace(b"/boot/", b"/")}, "quiet net.ifnames=0"),
        ({"boot/grub/grub.cfg": GRUB.replace(b"/boot/", b"($root)/boot/")}, "quiet net.ifnames=0"),
        (
            {
                "boot/loader/entries/a-6.1.0-9.conf": ENTRY,
                "boot/loader/entries/a-6.1.0-10.rescue.conf": ENTRY.replace(b"9-amd64", b"10"),
                "boot/loader/entries/a-5.10.conf": ENTRY.replace(b"6.1.0-9-amd64", b"5.10"),
            },
            "rhgb",
        ),
        ({"vmlinuz": "boot/vmlinuz-6.1.0-9-amd64"}, "from=card"),
        ({"boot/vmlinuz": "vmlinuz-6.1.0-9-amd64"}, "from=card"),
        ({"boot/vmlinuz-0-rescue-1": image("rescue")}, "from=card"),
    ],
    ids=["grub", "grub-boot", "grub-root", "entries", "link", "boot-link", "newest"],
)
def test_the_kernel_is_the_one_that_the_layer_boots(
    tree: Callable[[Files], Tree], files: Files, cmdline: str
) -> None:
    """A newer one beside it, and older ones, are not taken for it."""
    other = {"boot/vmlinuz-5.10": image("5.10"), "boot/vmlinuz-6.1.0-10-amd64": image("6.1.0-10-amd64")}
    if "boot/vmlinuz-0-rescue-1" in files:
        del other["boot/vmlinuz-6.1.0-10-amd64"]
    found = kernel.find(
        tree({f"boot/vmlinuz-{RELEASE}": image(), **modules("loop"), **other, **files}), "root=/dev/vda1 from=card"
    )
    assert (found.release, found.cmdline, found.image) == (RELEASE, cmdline, image())


@pytest.mark.parametrize("name", [f"boot/vmlinuz-{RELEASE}", "boot/vmlinuz"])
def test_the_release_of_a_kernel_that_does_not_say_it(tree: Callable[[Files], Tree], name: str) -> None:
    found = kernel.find(tree({name: bytes(1024), **modules("loop")}), "")
    assert found.release == RELEASE


def test_a_layer_without_a_kernel_or_its_modules_is_refused(tree: Callable[[Files], Tree]) -> None:
    with pytest.raises(UsageError, match="the layer has no kernel in /boot"):
        kernel.find(tree({"etc/fstab": b""}), "")
    with pytest.raises(UsageError, match=rf"no modules for its kernel {RELEASE}"):
        kernel.find(tree({"boot/vmlinuz-1": image()}), "")


def test_modules_may_be_compressed(tree: Callable[[Files], Tree]) -> None:
    zstd = subprocess.run(["zstd", "-c"], input=module("three"), capture_output=True, check=True).stdout
    folder = f"lib/modules/{RELEASE}"
    files = {
        f"{folder}/one.ko.xz": lzma.compress(module("two")),
        f"{folder}/two.ko.zst": zstd,
        f"{folder}/three.ko.gz": gzip.compress(module()),
        f"{folder}/modules.builtin": b"kernel/fs/four.ko\n",
    }
    found = kernel.find(tree({"boot/vmlinuz-1": image(), **files}), "").modules
    assert list(found.closure(["one"], must=True)) == ["three.ko", "two.ko", "one.ko"]
    assert found.missing(["one", "three", "four", "five"]) == ["five"]


def test_missing_modules_are_named(tree: Callable[[Files], Tree]) -> None:
    most = [name for name in ALL if name not in ("ahci", "usb_storage")]
    found = kernel.find(tree({"boot/vmlinuz-1": image(), **modules(*most)}), "")
    assert initramfs.missing(found) == ["ahci", "usb_storage"]
    poor = found._replace(modules=Modules(["loop.ko"], lambda name: b"", []))
    with pytest.raises(UsageError, match=rf"kernel {RELEASE} has no squashfs and no overlay, which an ISO needs"):
        initramfs.missing(poor)


def test_a_busybox_of_the_layer_is_used_for_a_foreign_architecture(tree: Callable[[Files], Tree]) -> None:
    header = (
        b"\x7fELF\x02\x01".ljust(18, b"\0") + struct.pack("<H", 183) + bytes(34) + struct.pack("<H", 56) + bytes(8)
    )
    assert initramfs.busybox_for("aarch64", tree({"usr/bin/busybox": header})) == header
    with pytest.raises(UsageError, match="has a static busybox for riscv64") as caught:
        initramfs.busybox_for("riscv64", tree({}))
    assert "busybox-static" in caught.value.hint


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk with a root that has a kernel and all its drivers, and 8 MiB that cannot be compressed."""
    folder = tmp_path_factory.mktemp("raw")
    release = f"lib/modules/{RELEASE}"
    (folder / "kernel").write_bytes(image())
    (folder / "module").write_bytes(module())
    (folder / "data").write_bytes(os.urandom(8 << 20))
    commands = [f"mkdir {name}" for name in ("etc", "usr", "boot", "lib", "lib/modules", release)]
    commands += [f"write {folder}/module {release}/{name}.ko" for name in ALL]
    commands += [f"write {folder}/kernel boot/vmlinuz-{RELEASE}", f"write {folder}/data usr/data"]
    return ext4_disk(folder / "disk.raw", *commands, size=24 << 20)


def put_layer(store: Store, raw: Path) -> None:
    path = store.layer(ID).image
    path.parent.mkdir(parents=True)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path], check=True)


def disk_of(raw: Path, work: Path, **options: object) -> Disk:
    work.mkdir()
    path = work / "disk.raw"
    path.hardlink_to(raw)
    return Disk(path, path.stat().st_size, ID, Card(), Options(**options))  # type: ignore[arg-type]


def extracted(made: Path, out: Path) -> Path:
    """The files on an image."""
    subprocess.run(
        ["xorriso", "-osirrox", "on", "-indev", made, "-extract", "/", out], check=True, capture_output=True
    )
    return out


def settings(folder: Path) -> str:
    packed = gzip.decompress((folder / "initrd").read_bytes())
    (folder.parent / "initramfs").mkdir()
    subprocess.run(["busybox", "cpio", "-id"], input=packed, cwd=folder.parent / "initramfs", check=True)
    subprocess.run(["busybox", "sh", "-n", folder.parent / "initramfs/init"], check=True)
    return (folder.parent / "initramfs/settings").read_text()


def test_a_live_image_has_the_layers_kernel_and_files(raw: Path, tmp_path: Path) -> None:
    iso.write(disk_of(raw, tmp_path / "work", persist="data"), made := tmp_path / "work/pg-1.iso")
    on = extracted(made, tmp_path / "on")
    folder = on / f"live/live-{ID[:12]}"
    assert (folder / "vmlinuz").read_bytes() == image()
    subprocess.run(["unsquashfs", "-quiet", "-d", tmp_path / "root", folder / "payload.squashfs"], check=True)
    assert (tmp_path / "root/usr/data").read_bytes() == (raw.parent / "data").read_bytes()
    menu = (on / "boot/grub/grub.cfg").read_text()
    assert menu.count("menuentry") == 4
    assert 'menuentry "Start pg-1 and keep no changes (from memory)"' in menu
    assert "persist=data" in settings(folder)


def test_an_image_boots_in_all_four_ways(raw: Path, tmp_path: Path) -> None:
    iso.write(disk_of(raw, tmp_path / "work"), made := tmp_path / "work/pg-1.iso")
    argv = ["xorriso", "-indev", str(made), "-report_el_torito", "plain", "-report_system_area", "plain"]
    told = subprocess.check_output(argv, text=True, stderr=subprocess.DEVNULL)
    for line in ("BIOS  y   none", "UEFI  y   none", "grub2-mbr", "/boot/grub/eltorito.img"):
        assert line in told
    table = subprocess.check_output(["sfdisk", "--dump", made], text=True)
    (start,) = (
        line.split("start=")[1].split(",")[0] for line in table.splitlines() if partitions.ESP_TYPE.upper() in line
    )
    listed = subprocess.check_output(["mdir", "-b", "-i", f"{made}@@{int(start) * 512}", "::/EFI/BOOT"], text=True)
    assert listed.strip() == "::/EFI/BOOT/BOOTX64.EFI"


def test_an_installer_has_the_disk_and_its_checksum(raw: Path, tmp_path: Path) -> None:
    disk = disk_of(raw, tmp_path / "work", install_disk="largest", unattended=True)
    installer_iso.write(disk, made := tmp_path / "work/pg-1.installer.iso")
    folder = extracted(made, tmp_path / "on") / f"live/install-{ID[:12]}"
    subprocess.run(["unsquashfs", "-quiet", "-d", tmp_path / "payload", folder / "payload.squashfs"], check=True)
    subprocess.run(["cmp", tmp_path / "payload/disk.raw", raw], check=True)
    digest = subprocess.check_output(["sha256sum", raw], text=True).split()[0]
    found = settings(folder)
    for line in (f"size={24 << 20}", f"sha256={digest}", "disk=largest", "unattended=1", "title=pg-1"):
        assert line in found.splitlines()


@pytest.mark.parametrize(("format", "suffix"), [(iso, "iso"), (installer_iso, "installer.iso")])
def test_the_same_layer_gives_the_same_image(raw: Path, tmp_path: Path, format: object, suffix: str) -> None:
    for name in ("one", "two"):
        format.write(disk_of(raw, tmp_path / name), tmp_path / name / f"pg-1.{suffix}")  # type: ignore[attr-defined]
        os.utime(raw)
    subprocess.run(["cmp", *(tmp_path / name / f"pg-1.{suffix}" for name in ("one", "two"))], check=True)
    left = {path.name for path in (tmp_path / "one").iterdir()}
    assert left <= {"disk.raw", "files.tar", f"pg-1.{suffix}"}


def test_without_drivers_for_media_the_payload_is_loaded_into_memory(raw: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.raw"
    path.write_bytes(raw.read_bytes())
    remove = f"rm lib/modules/{RELEASE}/sr_mod.ko"
    subprocess.run(["debugfs", "-w", "-R", remove, f"{path}?offset={1 << 20}"], check=True, capture_output=True)
    said: list[str] = []
    disk = disk_of(path, tmp_path / "work")._replace(say=said.append)
    iso.write(disk, made := tmp_path / "work/pg-1.iso")
    assert said == [f"the kernel {RELEASE} has no driver sr_mod: the ISO is loaded into memory before it starts"]
    menu = (extracted(made, tmp_path / "on") / "boot/grub/grub.cfg").read_text()
    assert menu.count("menuentry") == menu.count("(from memory)") == 1
    with pytest.raises(UsageError, match=r"finds no CD and no USB stick, and 4\.0 GiB are too much for memory"):
        medium.check_memory(4 << 30)


@pytest.mark.parametrize("type", ["iso", "installer-iso"])
@pytest.mark.parametrize(
    ("card", "said"),
    [
        (Card(os="windows"), "only a Linux layer can be made into an ISO, and this one has windows"),
        (Card(arch="riscv64"), "an ISO can be made for x86_64 and aarch64, and the layer is for riscv64"),
    ],
)
def test_other_guests_are_refused(type: str, card: Card, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        FORMATS[type].check(1 << 30, card)
    assert caught.value.message == said


def test_what_this_host_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(medium, "_BIOS", tmp_path / "i386-pc")
    for arch, package in (("x86_64", "grub-efi-amd64-bin"), ("aarch64", "grub-efi-arm64-bin")):
        with pytest.raises(UsageError) as caught:
            medium.check_host(arch)
        assert package in caught.value.hint
    monkeypatch.setattr(shutil, "which", lambda program, path: None)
    with pytest.raises(UsageError) as caught:
        medium.check_host("x86_64")
    assert "xorriso" in caught.value.hint


@pytest.mark.parametrize("label", ["a b", "x" * 17, "$(reboot)"])
def test_a_label_that_no_partition_can_have_is_refused(store: Store, tmp_path: Path, label: str) -> None:
    wanted = Wanted(("iso",), tmp_path / "out", "pg-1", Card(), Options(persist=label))
    with pytest.raises(UsageError, match=r"--persist .*: it is the label of a partition"):
        export(store, ID, wanted, say=print)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (Options(persist="data"), "--persist is for --type iso"),
        (Options(install_disk="sda"), "--disk and --unattended are for --type installer-iso"),
        (Options(unattended=True), "--disk and --unattended are for --type installer-iso"),
    ],
)
def test_an_option_without_its_type_is_refused(store: Store, tmp_path: Path, options: Options, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        export(store, ID, Wanted(("raw",), tmp_path / "out", "pg-1", Card(), options), say=print)


@pytest.mark.parametrize("type", ["iso", "installer-iso"])
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_full_disk_leaves_nothing(store: Store, raw: Path, tmp_path: Path, type: str) -> None:
    """There is room for the disk and for what goes onto the image, but not for the image."""
    put_layer(store, raw)
    with small_file_system(tmp_path / "small.img", tmp_path / "small", 34 << 20) as out:
        before = {path.name for path in out.iterdir()}
        with pytest.raises(ObuildError, match=r"cannot write to .*No space left on device"):
            export(store, ID, Wanted((type,), out, "pg-1", Card()), say=lambda text: None)
        assert {path.name for path in out.iterdir()} == before


def test_an_interrupt_leaves_nothing(
    store: Store, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_layer(store, raw)
    run = process.run

    def interrupt(argv: list[str], **options: object) -> bytes:
        if argv[0] == "xorriso":
            raise KeyboardInterrupt
        return run(argv, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(process, "run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(store, ID, Wanted(("iso",), tmp_path / "out", "pg-1", Card()), say=lambda text: None)
    assert list((tmp_path / "out").iterdir()) == []
