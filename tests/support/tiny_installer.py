"""A tiny installer as an ISO image, which boots by BIOS and by UEFI: see tests/recipes/tiny-installer.toml."""

from __future__ import annotations

import gzip
import subprocess
from io import BytesIO
from pathlib import Path

import pycdlib

from obuild.host import locks
from tests.support.program import ROOT, base_images

CMDLINE = "console=ttyS0 panic=-1 quiet no_timer_check cryptomgr.notests"


def iso() -> Path:
    """The ISO; it is made once for each state of the recipe."""
    kept = base_images(str(ROOT / "tests" / "recipes" / "tiny-installer.toml"))
    path = kept / "installer.iso"
    with locks.file_lock(path.with_suffix(".lock")):  # several processes run tests
        if not path.exists():
            part = path.with_suffix(".part")
            _write(kept / "base-image" / "tiny-installer.qcow2", part)
            part.replace(path)
    return path


def kernel() -> tuple[Path, Path]:
    """The installer's kernel and its initial RAM disk."""
    folder = iso().parent
    return folder / "vmlinuz", folder / "initrd.img"


def _grub(folder: Path, kind: str, config: Path, *modules: str) -> Path:
    """A boot loader for a CD that runs the commands in `config`."""
    core = folder / f"{kind}.img"
    grub = ["grub-mkimage", "-O", kind, "-p", "(cd)/boot/grub", "-c", str(config), "-o", str(core)]
    subprocess.run([*grub, "iso9660", "normal", *modules], check=True)
    return core


def _write(disk: Path, out: Path) -> None:
    folder = out.parent
    raw = folder / "disk.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", disk, raw], check=True)
    files = {"disk.img.gz": gzip.compress(raw.read_bytes(), compresslevel=1, mtime=0)}
    for name in ("vmlinuz", "initrd.img"):
        argv = ["/usr/sbin/debugfs", "-R", f"dump /{name} {folder / name}", f"{raw}?offset={1 << 20}"]
        subprocess.run(argv, check=True, capture_output=True)
        files[name] = (folder / name).read_bytes()
    config = folder / "grub.cfg"
    config.write_text(f"linux16 (cd)/vmlinuz {CMDLINE}\ninitrd16 (cd)/initrd.img\nboot\n")
    core = _grub(folder, "i386-pc-eltorito", config, "biosdisk", "linux16")
    config.write_text(f"linux (cd0)/vmlinuz {CMDLINE}\ninitrd (cd0)/initrd.img\nboot\n")
    efi = _grub(folder, "x86_64-efi", config, "linux", "boot")
    fat = folder / "efi.img"
    subprocess.run(["mformat", "-C", "-f", "1440", "-i", fat, "::"], check=True)
    subprocess.run(["mmd", "-i", fat, "::/EFI", "::/EFI/BOOT"], check=True)
    subprocess.run(["mcopy", "-i", fat, efi, "::/EFI/BOOT/BOOTX64.EFI"], check=True)
    image = pycdlib.PyCdlib()
    image.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="TINY")
    for number, (name, data) in enumerate(files.items()):
        image.add_fp(BytesIO(data), len(data), f"/F{number}.;1", rr_name=name, joliet_path=f"/{name}")
    for name, loader in (("boot.img", core), ("efi.img", fat)):
        data = loader.read_bytes()
        image.add_fp(BytesIO(data), len(data), f"/{name.upper()};1", rr_name=name, joliet_path=f"/{name}")
    image.add_eltorito("/BOOT.IMG;1", "/BOOT.CAT;1", boot_load_size=4, boot_info_table=True)
    image.add_eltorito("/EFI.IMG;1", efi=True, platform_id=0xEF)
    with out.open("wb") as file:
        image.write_fp(file)
        file.write(bytes(150 * 2048))
    image.close()
    raw.unlink()
