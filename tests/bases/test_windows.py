"""The answer file, script and media for Windows Setup, compared with Microsoft's documentation. No Windows ran."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from obuild.bases import answer_file, media, recipe, windows
from obuild.bases.kind import Making, Recipe, digest
from obuild.bases.remote import Remote
from obuild.errors import UsageError
from obuild.executors.qemu.machine import Machine
from obuild.executors.qemu.shape import Shape
from obuild.host import process
from obuild.store.layers import Store
from tests.support.recipes import recipe_of

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "windows"
NAMES = ["windows-11", "windows-server-2022", "windows-server-2022-x86_64-ocaml-4.14"]

#: The elements that are used, as Microsoft documents them: the passes of components, and what elements hold.
#: https://learn.microsoft.com/windows-hardware/customize/desktop/unattend/components-b-unattend
PASSES = {
    "International-Core-WinPE": {"windowsPE"},
    "PnpCustomizationsWinPE": {"windowsPE"},
    "Setup": {"windowsPE"},
    "PartitionManager": {"offlineServicing", "windowsPE", "specialize", "generalize", "auditSystem"},
    "Shell-Setup": {"offlineServicing", "generalize", "specialize", "auditSystem", "auditUser", "oobeSystem"},
    "International-Core": {"specialize", "oobeSystem"},
}
ELEMENTS = {
    "International-Core-WinPE": {"SetupUILanguage", "InputLocale", "SystemLocale", "UILanguage", "UserLocale"},
    "International-Core": {"InputLocale", "SystemLocale", "UILanguage", "UserLocale"},
    "SetupUILanguage": {"UILanguage", "WillShowUI"},
    "PnpCustomizationsWinPE": {"DriverPaths"},
    "DriverPaths": {"PathAndCredentials"},
    "PathAndCredentials": {"Path", "Credentials"},
    "Setup": {"DiskConfiguration", "ImageInstall", "UserData", "RunSynchronous"},
    "DiskConfiguration": {"Disk", "WillShowUI"},
    "Disk": {"DiskID", "WillWipeDisk", "CreatePartitions", "ModifyPartitions"},
    "CreatePartitions": {"CreatePartition"},
    "CreatePartition": {"Order", "Type", "Size", "Extend"},
    "ModifyPartitions": {"ModifyPartition"},
    "ModifyPartition": {"Order", "PartitionID", "Active", "Format", "Label", "Letter", "TypeID"},
    "ImageInstall": {"OSImage"},
    "OSImage": {"InstallFrom", "InstallTo", "WillShowUI"},
    "InstallFrom": {"MetaData", "Path"},
    "MetaData": {"Key", "Value"},
    "InstallTo": {"DiskID", "PartitionID"},
    "UserData": {"AcceptEula", "FullName", "Organization", "ProductKey"},
    "ProductKey": {"Key", "WillShowUI"},
    "RunSynchronous": {"RunSynchronousCommand"},
    "RunSynchronousCommand": {"Order", "Path", "Description"},
    "PartitionManager": {"SanPolicy"},
    "Shell-Setup": {
        *("ComputerName", "TimeZone", "AutoLogon", "FirstLogonCommands", "OOBE", "UserAccounts"),
    },
    "AutoLogon": {"Enabled", "LogonCount", "Username", "Password", "Domain"},
    "Password": {"Value", "PlainText"},
    "FirstLogonCommands": {"SynchronousCommand"},
    "SynchronousCommand": {"Order", "CommandLine", "Description", "RequiresUserInput"},
    "OOBE": {
        *("HideEULAPage", "HideLocalAccountScreen", "HideOEMRegistrationScreen", "HideOnlineAccountScreens"),
        *("HideWirelessSetupInOOBE", "ProtectYourPC"),
    },
    "UserAccounts": {"LocalAccounts", "AdministratorPassword"},
    "LocalAccounts": {"LocalAccount"},
    "LocalAccount": {"Name", "Group", "Password", "DisplayName", "Description"},
}

RECIPE = (ROOT / "base-images" / "windows-server-2022.toml").read_text()


def ours(name: str) -> Recipe:
    return recipe.load(ROOT / "base-images" / f"{name}.toml")


def seed(made: Recipe) -> dict[str, bytes]:
    return windows.seed_files(made, "ssh-ed25519 AAAA it's me\n", b"MSI", "password")


def tag(element: ET.Element) -> str:
    return element.tag.removeprefix("{urn:schemas-microsoft-com:unattend}")


@pytest.mark.parametrize("name", NAMES)
def test_every_element_is_documented_and_in_a_pass_that_its_component_has(name: str) -> None:
    root = ET.fromstring(seed(ours(name))["autounattend.xml"])
    assert tag(root) == "unattend"
    for settings in root:
        for component in settings:
            what = component.attrib["name"].removeprefix("Microsoft-Windows-")
            assert settings.attrib["pass"] in PASSES[what]
            check(component, what)


def check(element: ET.Element, name: str) -> None:
    for inner in element:
        assert tag(inner) in ELEMENTS[name], name
        check(inner, tag(inner))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("file", ["autounattend.xml", "setup.ps1"])
def test_the_answers_match_the_golden_files(name: str, file: str) -> None:
    path = "obuild/setup.ps1" if file == "setup.ps1" else file
    text = seed(ours(name))[path].decode("utf-8-sig").replace("\r\n", "\n")
    assert text == (GOLDEN / f"{name}-{file}").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_our_recipes_are_pinned_and_marked_as_untried(name: str) -> None:
    made = ours(name)
    assert not made.tried
    assert windows.unpinned(made) == ""


def test_a_password_is_written_as_setup_writes_it() -> None:
    hidden = answer_file.hidden("geheim", "Password")
    assert base64.b64decode(hidden).decode("utf-16-le") == "geheimPassword"


def test_the_password_is_not_part_of_the_digest() -> None:
    made = ours("windows-server-2022")
    first, second = (windows.seed_files(made, "K", b"", each)["autounattend.xml"] for each in ("one", "two"))
    assert first != second
    assert digest(made) == digest(ours("windows-server-2022"))


def test_setup_gets_a_product_key_only_if_the_recipe_has_one() -> None:
    assert b"ProductKey" not in seed(recipe_of(RECIPE))["autounattend.xml"]
    key = "AAAAA-BBBBB-CCCCC-DDDDD-11111"
    text = RECIPE.replace("[windows]\n", f'[windows]\nkey = "{key}"\n')
    assert f"<Key>{key}</Key>".encode() in seed(recipe_of(text))["autounattend.xml"]


def test_the_script_is_found_on_any_cd_and_can_be_read_by_powershell() -> None:
    assert "if exist %d:\\obuild\\setup.ps1 powershell" in windows.first_logon()
    script = seed(recipe_of(RECIPE))["obuild/setup.ps1"]
    assert script.startswith(b"\xef\xbb\xbf$ErrorActionPreference = 'Stop'\r\n")
    assert "'ssh-ed25519 AAAA it''s me'" in script.decode("utf-8-sig")


def test_the_machine_has_three_cds() -> None:
    read = [(Path(f"/{name}"), "cdrom") for name in ("windows", "drivers", "answers")]
    line = [str(word) for word in media.argv(Shape(), read)]  # type: ignore[arg-type]
    assert [word for word in line if word.startswith("ide-cd")] == [
        "ide-cd,bus=ide.0,unit=0,drive=disk1,bootindex=1",
        "ide-cd,bus=ide.0,unit=1,drive=disk2",
        "ide-cd,bus=ide.1,unit=0,drive=disk3",
    ]


def test_a_host_without_a_tpm_is_reported_before_any_download(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_download(remote: Remote) -> Path:
        raise AssertionError("something was downloaded")

    monkeypatch.setattr(process, "require_file", lambda path, package: None)
    monkeypatch.setattr(shutil, "which", lambda program, path: None if program == "swtpm" else program)
    making = Making(store, tmp_path / "key", "key", print, no_download)
    with pytest.raises(UsageError, match="swtpm is not installed") as caught:
        windows.make(ours("windows-11"), tmp_path / "out.qcow2", making)
    assert caught.value.hint == "apt install swtpm"
    with pytest.raises(AssertionError, match="something was downloaded"):
        windows.make(ours("windows-server-2022"), tmp_path / "out.qcow2", making)


class Said(Machine):
    """A machine with this on COM1."""

    def __init__(self, console: str) -> None:
        self.said = console

    def console(self, lines: int = 0) -> str:
        return self.said


@pytest.mark.parametrize(
    ("console", "ended", "problem"),
    [
        ("obuild: ok", "", ""),
        ("\nobuild: ok\n", "it panicked", "it panicked"),
        ("obuild: failed: no MSI", "", "the script at the first logon failed: no MSI"),
        ("", "", "the guest powered off before the script at the first logon was done"),
        ("", "it has not powered off", "it has not powered off"),
    ],
)
def test_the_script_reports_whether_the_installation_succeeded(console: str, ended: str, problem: str) -> None:
    assert windows.judge(Said(console), ended).problem == problem


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('os = "windows"', 'os = "linux"', "the card does not fit Windows"),
        ("index = 1", "index = 0", "index must be a whole number"),
        ("index = 1", "index = true", "index must be a whole number"),
        ("index = 1", 'key = "12345"', "key is '12345'"),
        ("index = 1", 'locale = "english"', "locale is 'english'"),
        ("index = 1", "edition = 1", "unknown key 'edition'"),
        ('driver-folder = "2k22"', "driver-folder = '../x'", "driver-folder is '../x'"),
        ("[windows.drivers]", "[windows.virtio]", "unknown key 'virtio'"),
    ],
)
def test_a_mistake_is_named(old: str, new: str, message: str) -> None:
    assert old in RECIPE
    with pytest.raises(UsageError) as caught:
        recipe_of(RECIPE.replace(old, new))
    assert message in caught.value.message
