"""Installers, without a guest: mistakes in recipes, the media, and how an installation may end."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from io import BytesIO
from pathlib import Path

import pycdlib
import pytest

from obuild.bases import installer, media, recipe, seed, unattended, work_folder
from obuild.bases.installer import Options
from obuild.bases.kind import File, Making, digest
from obuild.bases.media import Seed
from obuild.bases.remote import Remote
from obuild.errors import MachineError, UsageError
from obuild.executors.qemu.machine import Machine
from obuild.executors.qemu.shape import Kernel, Shape
from obuild.store.layers import Store
from tests.support.recipes import recipe_of

DIGEST = "sha256:" + "0" * 64

RECIPE = f"""
kind = "installer"
size = "1G"
[card]
login = "me"
[installer]
timeout = "90m"
[installer.iso]
url = "https://example.org/x.iso"
digest = "{DIGEST}"
[[installer.seed]]
as = "cdrom"
[installer.seed.files]
user-data = '''
#cloud-config
key: @public_key@
install: {{auto: true}}
'''
"""

KERNEL = RECIPE.replace("[installer.iso]", "[installer.kernel]")


def options(text: str = RECIPE) -> Options:
    found: Options = recipe_of(text).options
    return found


def test_every_key_is_read() -> None:
    user_data = b"#cloud-config\nkey: @public_key@\ninstall: {auto: true}\n"
    assert options() == Options(
        iso=Remote(("https://example.org/x.iso",), DIGEST),
        kernel=None,
        initrd=None,
        cmdline="",
        files=(),
        seeds=(Seed("cidata", "cdrom", (("user-data", user_data),)),),
        memory=2 << 30,
        ends="poweroff",
        verify="ssh",
        timeout=5400.0,
    )


def test_the_users_own_iso_is_named_by_its_path_or_by_an_address(tmp_path: Path) -> None:
    text = RECIPE.replace('url = "https://example.org/x.iso"', 'path = "@iso@"') + '[vars]\niso = "x.iso"\n'
    (tmp_path / "mine.toml").write_text(text)
    found = recipe.load(tmp_path / "mine.toml").options.iso
    assert found == Remote(((tmp_path / "x.iso").as_uri(),), DIGEST)
    assert recipe_of(text, iso="/a b.iso").options.iso.urls == ("file:///a%20b.iso",)
    assert recipe_of(text, iso="https://x/y.iso").options.iso.urls == ("https://x/y.iso",)
    assert installer.unpinned(recipe_of(text.replace(DIGEST, ""))).startswith("the digest of file:///")


def test_a_seed_can_be_a_folder_whose_files_are_part_of_the_digest(tmp_path: Path) -> None:
    (tmp_path / "answers" / "deep").mkdir(parents=True)
    (tmp_path / "answers" / "ks.cfg").write_text("for @name@")
    (tmp_path / "answers" / "deep" / "blob").write_bytes(b"\xff@name@")
    text = RECIPE[: RECIPE.index("[[installer.seed]]")]
    text += '[[installer.seed]]\nlabel = "OEMDRV"\nfolder = "answers"\n[vars]\nname = "you"\n'
    path = tmp_path / "mine.toml"
    path.write_text(text)
    made = recipe.load(path)
    assert made.options.seeds[0] == Seed("OEMDRV", "disk", (("deep/blob", b"\xff@name@"), ("ks.cfg", b"for you")))
    (tmp_path / "answers" / "ks.cfg").write_text("else")
    assert digest(recipe.load(path)) != digest(made)
    assert {tmp_path / "answers", tmp_path / "answers" / "ks.cfg"} <= set(made.files)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[installer.iso]", "[installer.isa]", "unknown key 'isa'"),
        ('timeout = "90m"', 'timeout = "long"', "timeout: 'long' is not a duration"),
        ('timeout = "90m"', 'ends = "never"', "ends is 'never'"),
        ('timeout = "90m"', 'verify = "maybe"', "verify is 'maybe'"),
        ('timeout = "90m"', 'memory = "1M"', "memory must be whole MiB, and at least 32M"),
        ('timeout = "90m"', 'cmdline = "x"', "cmdline needs [installer.kernel]"),
        ('login = "me"', 'firmware = "kernel"', "the installed system boots by itself"),
        ('as = "cdrom"', 'as = "tape"', "as is 'tape'"),
        ('as = "cdrom"', 'label = "a b"', "label is 'a b'"),
        ('as = "cdrom"', 'as = "floppy"\nlabel = "twelve-chars"', "label is 'twelve-chars'"),
        ('as = "cdrom"', 'folder = "nowhere"', "there is no folder"),
        ("user-data =", '"../x" = ""\nuser-data =', "'../x' is not the path of a file"),
        ("auto: true", "poweroff: false", "install.poweroff is False: the installer would never end"),
        ("auto: true", "reboot: true", "install.reboot is True, and ends is 'poweroff'"),
        ("{auto: true}", "[", "user-data is not YAML"),
        ('timeout = "90m"', 'ends = "reboot"', ""),
    ],
)
def test_a_mistake_is_named_with_its_place(old: str, new: str, message: str) -> None:
    assert old in RECIPE
    text = RECIPE.replace(old, new)
    if not message:
        assert options(text).ends == "reboot"
        return
    with pytest.raises(UsageError) as caught:
        options(text)
    assert "mine.toml" in caught.value.message
    assert message in caught.value.message


def test_there_must_be_something_to_boot_and_room_for_all_cds() -> None:
    with pytest.raises(UsageError, match="there is nothing to boot"):
        options('kind = "installer"\nsize = "1G"\n[installer]\n')
    with pytest.raises(UsageError, match=r"file needs \[installer.initrd\], to which the files are added"):
        options(KERNEL + '[[installer.file]]\npath = "/x"\ntext = ""\n')
    cds = '[[installer.seed]]\nas = "cdrom"\nfiles = {x = ""}\n' * 3
    with pytest.raises(UsageError, match="4 CD drives, and the recipe needs 5"):
        options(RECIPE + cds)
    with pytest.raises(UsageError, match="aarch64 has no floppy drive"):
        options('arch = "arm64"\n' + RECIPE.replace('"cdrom"', '"floppy"'))


@pytest.mark.parametrize("name", ["debian-12-installer", "edge-installer"])
def test_our_recipes_are_sound_and_marked_as_untried(name: str) -> None:
    made = recipe.load(Path(__file__).parents[2] / "base-images" / f"{name}.toml")
    assert made.kind == "installer"
    assert not made.tried


def test_the_edge_installer_gets_its_registration_data() -> None:
    path = Path(__file__).parents[2] / "base-images" / "edge-installer.toml"
    text = path.read_text()
    made = recipe_of(text, iso="/x.iso", endpoint="https://e", token="T", url="https://r")
    (_, _), (_, data) = made.options.seeds[0].files
    assert b'paletteEndpoint: "https://e"\n    edgeHostToken: "T"\n    registrationURL: "https://r"' in data


# -- the media


def test_seeds_are_made_with_the_stores_key(tmp_path: Path) -> None:
    seeds = (
        Seed("cidata", "disk", (("user-data", b"key: @public_key@"),)),
        Seed("DRIVERS", "cdrom", (("$Win/a/b.inf", b"x"), ("top", b"y"))),
        Seed("ANSWERS", "floppy", (("autounattend.xml", b"<x/>"), ("sub/file", b"z"))),
    )
    made = media.write(seeds, "ssh-ed25519 AAAA\n", tmp_path)
    assert [bus for _, bus in made] == ["disk", "cdrom", "floppy"]
    assert b"key: ssh-ed25519 AAAA" in made[0][0].read_bytes()
    image = pycdlib.PyCdlib()
    image.open(str(made[1][0]))
    for path in ("joliet_path", "rr_path"):
        out = BytesIO()
        image.get_file_from_iso_fp(out, **{path: "/$Win/a/b.inf"})
        assert out.getvalue() == b"x"
    image.close()
    floppy = made[2][0]
    assert floppy.stat().st_size == 1440 << 10
    listed = subprocess.run(["mdir", "-/", "-b", "-i", floppy, "::"], capture_output=True, text=True, check=True)
    assert listed.stdout.split() == ["::/autounattend.xml", "::/sub/", "::/sub/file"]
    assert b"ANSWERS" in floppy.read_bytes()


def test_the_same_files_give_the_same_floppy_and_must_fit_on_it(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        seed.floppy(tmp_path / f"{name}.img", {"x": b"1", "y/z": b"2"}, label="L", work=tmp_path / name)
    assert (tmp_path / "a.img").read_bytes() == (tmp_path / "b.img").read_bytes()
    (tmp_path / "c").mkdir()
    with pytest.raises(UsageError, match="the files of the floppy 'L' do not fit on it"):
        seed.floppy(tmp_path / "c.img", {"x": bytes(2 << 20)}, label="L", work=tmp_path / "c")


def test_files_are_added_to_an_initrd_as_a_second_archive(tmp_path: Path) -> None:
    initrd = tmp_path / "initrd"
    initrd.write_bytes(b"first")
    media.add_to_initrd(initrd, (File("/etc/deep/x", 0o600, "key @public_key@"), File("/etc/y", 0o644, "")), "K\n")
    data = initrd.read_bytes()
    assert data[:8] == b"first\0\0\0"
    unpacked = subprocess.run(["gunzip"], input=data[8:], capture_output=True, check=True).stdout
    listed = subprocess.run(["busybox", "cpio", "-tv"], input=unpacked, capture_output=True, check=True).stdout
    modes = [(line.split()[0], line.split()[-1]) for line in listed.decode().splitlines()]
    assert modes == [
        ("drwxr-xr-x", "etc"),
        ("drwxr-xr-x", "etc/deep"),
        ("-rw-------", "etc/deep/x"),
        ("-rw-r--r--", "etc/y"),
    ]
    assert b"key K" in unpacked


def test_the_machine_boots_from_the_iso_after_the_disk_and_never_from_seeds() -> None:
    read = [(Path("/iso"), "cdrom"), (Path("/a"), "disk"), (Path("/b"), "cdrom"), (Path("/c"), "floppy")]
    line = [str(word) for word in media.argv(Shape(), read)]  # type: ignore[arg-type]
    assert line[:2] == ["-boot", "strict=on,reboot-timeout=1"]
    assert [word for before, word in itertools.pairwise(line) if before == "-device"] == [
        "ide-cd,bus=ide.0,unit=0,drive=disk1,bootindex=1",
        "ide-cd,bus=ide.0,unit=1,drive=disk2",
        "virtio-blk-pci,drive=disk3",
        "floppy,drive-type=144,drive=disk4",
    ]


def test_a_kernel_under_uefi_gets_scsi_cd_drives() -> None:
    shape = Shape(firmware="uefi", kernel=Kernel(Path("/k"), None, ""))
    line = [str(word) for word in media.argv(shape, [(Path("/iso"), "cdrom")])]
    assert line[-4:] == [
        *("-device", "virtio-scsi-pci,id=scsi1"),
        *("-device", "scsi-cd,bus=scsi1.0,drive=disk1,bootindex=1"),
    ]


# -- the host and the end


UEFI = RECIPE.replace('login = "me"', 'login = "me"\nfirmware = "uefi"')


@pytest.mark.parametrize(
    ("text", "lacking", "package"),
    [
        (RECIPE, "qemu-img", "qemu-utils"),
        (RECIPE.replace('"cdrom"', '"floppy"'), "mformat", "mtools"),
        (UEFI, "OVMF_CODE_4M.fd", "ovmf"),
        (UEFI, "OVMF_VARS_4M.fd", "ovmf"),
    ],
)
def test_what_is_missing_is_reported_before_any_download(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, lacking: str, package: str
) -> None:
    def no_download(remote: Remote) -> Path:
        raise AssertionError("something was downloaded")

    monkeypatch.setattr(shutil, "which", lambda program, path: None if program == lacking else program)
    monkeypatch.setattr(Path, "exists", lambda path: path.name != lacking)
    making = Making(store, tmp_path / "key", "key", print, no_download)
    with pytest.raises(UsageError, match=lacking) as caught:
        installer.make(recipe_of(text), tmp_path / "out.qcow2", making)
    assert caught.value.hint == f"apt install {package}"
    assert list(tmp_path.glob(f"*{work_folder.MAKING}")) == []


class Guest(Machine):
    """A machine that ends as it is told."""

    def __init__(self, *reasons: str | None, console: str = "", firmware: str = "bios") -> None:
        self.reasons = list(reasons)
        self.shape = Shape(firmware=firmware)
        self.said = console

    def ended(self, seconds: float) -> str | None:
        return self.reasons.pop(0) if self.reasons else None

    def console(self, lines: int = 0) -> str:
        return self.said

    def take_picture(self, path: Path) -> None:
        raise MachineError("no screen")


@pytest.mark.parametrize(
    ("guest", "ends", "reboots", "problem"),
    [
        (Guest("guest-shutdown"), "poweroff", 0, ""),
        (Guest("guest-reset"), "reboot", 0, ""),
        (Guest("guest-reset"), "poweroff", 0, "the guest rebooted instead of powering off"),
        (Guest("guest-shutdown"), "reboot", 0, "the guest powered off instead of rebooting"),
        (Guest("guest-panic"), "poweroff", 0, "the guest panicked instead of powering off"),
        (Guest("reset", "reset", "guest-shutdown"), "poweroff", 2, ""),
        (Guest("reset", "reset", "reset"), "poweroff", 2, "the guest reboots again and again"),
        (Guest(None, console="UEFI Interactive Shell v2.2", firmware="uefi"), "poweroff", 0, "UEFI found nothing"),
    ],
)
def test_how_a_guest_may_end(guest: Guest, ends: unattended.Ends, reboots: int, problem: str) -> None:
    found = unattended.wait(guest, 60.0, ends, reboots)
    assert found.startswith(problem)
    assert bool(found) == bool(problem)
