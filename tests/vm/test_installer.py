"""Installers with real guests: one in miniature, from its ISO and from its kernel."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from obuild.store import fsck
from obuild.store.layers import Store
from tests.support import tiny_installer
from tests.support.program import Program

pytestmark = pytest.mark.vm

RECIPE = """
kind = "installer"
size = "96M"
[card]
login = "root"
memory = "128M"
[installer]
memory = "256M"
timeout = "{timeout}"
{more}
[[installer.seed]]
[installer.seed.files]
meta-data = ""
user-data = '''
#cloud-config
install:
  poweroff: true
  name: @name@
  key: "@public_key@"
{answers}
'''
[vars]
name = "tiny"
{tables}
"""


MEDIA = ("iso", "drivers", "openssh")


def digest_of(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


@pytest.fixture(scope="session")
def tiny() -> Path:
    return tiny_installer.iso()


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path / "store")


@pytest.fixture
def recipe(tmp_path: Path, tiny: Path) -> Callable[..., Path]:
    """A recipe for the tiny installer."""

    def write(answers: str = "", more: str = "", *, timeout: str = "3m", image: Path = tiny) -> Path:
        path = tmp_path / "mine.toml"
        tables = f'[installer.iso]\npath = "{image}"\ndigest = "{digest_of(image)}"\n'
        text = RECIPE.format(answers=answers, more=more, timeout=timeout, tables=tables)
        path.write_text(text.replace('key: "@public_key@"', "key: @public_key@"))
        return path

    return write


def assert_only_the_downloads_are_left(program: Program) -> None:
    store = Store.open(program.store)
    assert list(fsck.check(store, read_data=True)) == []
    assert list(store.base_image.iterdir()) == []


def test_an_iso_and_answers_become_a_base_that_can_be_logged_in_to(
    program: Program, recipe: Callable[..., Path]
) -> None:
    said = program("base", "make", recipe(), "--set", "name=other", "--watch").stdout
    assert "mine: watch the guest's screen at vnc://127.0.0.1:" in said
    assert "mine: booting the installed system to check that SSH answers" in said
    assert [path.name for path in sorted((program.store / "base-image").iterdir())] == [
        "mine.made",
        "mine.qcow2",
        "mine.toml",
    ]
    assert (
        "mine exists already, and its recipe has not changed"
        in program("base", "make", recipe(), "--if-changed").stdout
    )


@pytest.mark.long
def test_an_installer_that_does_nothing_leaves_nothing(program: Program, recipe: Callable[..., Path]) -> None:
    said = program("base", "make", recipe("action: nothing"), code=2).stderr
    assert "mine: the installer ended and left no partition on the disk" in said
    assert_only_the_downloads_are_left(program)


def test_an_iso_that_does_not_boot_is_a_failure_with_a_picture(
    program: Program, recipe: Callable[..., Path], tmp_path: Path
) -> None:
    image = tmp_path / "no.iso"
    image.write_bytes(bytes(1 << 20))
    said = program("base", "make", recipe(image=image), code=1).stderr
    assert "mine: the guest rebooted instead of powering off\neither it found nothing to boot" in said
    picture = program.store / "state" / "screens" / "mine.png"
    assert f"a picture of its screen: {picture}" in said
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert_only_the_downloads_are_left(program)


@pytest.mark.long
@pytest.mark.parametrize(
    ("answers", "timeout", "message"),
    [
        ("action: panic", "10m", "mine: the guest panicked instead of powering off"),
        ("action: ask", "60s", "tiny installer: which disk. Press Enter"),
        ("", "1s", "mine: the guest has not powered off after 1 s"),
    ],
)
def test_an_installer_that_fails_shows_its_console_and_its_screen(
    program: Program, recipe: Callable[..., Path], answers: str, timeout: str, message: str
) -> None:
    said = program("base", "make", recipe(answers, timeout=timeout), code=1).stderr
    assert message in said
    assert "a picture of its screen: " in said
    assert_only_the_downloads_are_left(program)


@pytest.mark.long
def test_a_reboot_is_the_end_where_the_recipe_says_so(program: Program, recipe: Callable[..., Path]) -> None:
    path = recipe(more='ends = "reboot"\nverify = "none"', timeout="10m")
    path.write_text(path.read_text().replace("poweroff: true", "reboot: true"))
    program("base", "make", path)


@pytest.mark.long
def test_an_iso_can_be_booted_by_uefi(program: Program, recipe: Callable[..., Path]) -> None:
    """The installed system boots by BIOS alone, so it is not tried."""
    path = recipe(more='verify = "none"', timeout="10m")
    text = path.read_text().replace("[card]\n", '[card]\nfirmware = "uefi"\n')
    path.write_text(text.replace('memory = "256M"', 'memory = "512M"'))  # GRUB needs more under UEFI
    program("base", "make", path)
    assert (program.store / "base-image" / "mine.nvram").stat().st_size == 540672


@pytest.mark.long
def test_a_kernel_can_install_on_a_machine_with_uefi(program: Program, recipe: Callable[..., Path]) -> None:
    """The tiny system boots by BIOS alone: this tries the machine, and that its variables lie beside the image."""
    kernel, initrd = tiny_installer.kernel()
    path = recipe(more=f'verify = "none"\ncmdline = "{tiny_installer.CMDLINE}"', timeout="10m")
    text = path.read_text().replace("[card]\n", '[card]\nfirmware = "uefi"\n')
    for key, file in (("kernel", kernel), ("initrd", initrd)):
        text += f'[installer.{key}]\npath = "{file}"\ndigest = "{digest_of(file)}"\n'
    path.write_text(text)
    program("base", "make", path)
    assert (program.store / "base-image" / "mine.nvram").stat().st_size == 540672


WINDOWS = """
kind = "windows"
size = "96M"
[card]
os = "windows"
login = "root"
memory = "128M"
[windows]
memory = "1G"
timeout = "10m"
"""


@pytest.mark.long
def test_windows_setup_reboots_reports_and_leaves_ssh(program: Program, tiny: Path, tmp_path: Path) -> None:
    """The tiny installer plays Windows Setup: it needs the answer file and the script on the third CD."""
    path = tmp_path / "mine.toml"
    tables = (f'[windows.{key}]\npath = "{tiny}"\ndigest = "{digest_of(tiny)}"\n' for key in MEDIA)
    path.write_text(WINDOWS + "".join(tables))
    said = program("base", "make", path).stdout
    assert "mine: booting the installed system to check that SSH answers" in said
    assert (program.store / "base-image" / "mine.qcow2").is_file()


@pytest.mark.long
@pytest.mark.parametrize("point", ["machine.started"])
def test_a_killed_process_leaves_the_downloads(program: Program, recipe: Callable[..., Path], point: str) -> None:
    program("base", "make", recipe(), code=-9, env={"OBUILD_KILL_AT": point})
    assert_only_the_downloads_are_left(program)
