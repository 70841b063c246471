"""Write autounattend.xml, the answer file of Windows Setup.

Elements: https://learn.microsoft.com/windows-hardware/customize/desktop/unattend/
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

_NAMESPACE = "urn:schemas-microsoft-com:unattend"
_WCM = "http://schemas.microsoft.com/WMIConfig/2002/State"

#: The letters that a CD may have in Setup and in Windows: they depend on the machine.
LETTERS = ("D", "E", "F", "G")

#: The requirements of Windows 11 that Setup can be told to skip.
_CHECKS = ("BypassTPMCheck", "BypassSecureBootCheck", "BypassRAMCheck")


@dataclass(frozen=True, slots=True)
class Answers:
    """What the recipe decides. `index` is that of the image in install.wim; `key` is "" for evaluation media.

    `drivers` are folders on a CD. With `bypass`, Setup does not check the machine. Windows runs `command` at the
    first logon, as `user`, an administrator.
    """

    index: int
    key: str
    locale: str
    user: str
    password: str
    computer: str
    uefi: bool
    bypass: bool
    drivers: Sequence[str]
    command: str


def render(answers: Answers) -> bytes:
    """Return the file, in UTF-8."""
    ET.register_namespace("", _NAMESPACE)
    ET.register_namespace("wcm", _WCM)
    root = ET.Element(f"{{{_NAMESPACE}}}unattend")
    for name, components in _passes(answers).items():
        settings = ET.SubElement(root, f"{{{_NAMESPACE}}}settings", {"pass": name})
        for component, content in components.items():
            attributes = {
                "name": f"Microsoft-Windows-{component}",
                "processorArchitecture": "amd64",
                "publicKeyToken": "31bf3856ad364e35",
                "language": "neutral",
                "versionScope": "nonSxS",
            }
            _fill(ET.SubElement(settings, f"{{{_NAMESPACE}}}component", attributes), content)
    ET.indent(root)
    text: str = ET.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'.encode()


#: Text, child elements, or several elements of one name, which need the attribute wcm:action="add".
_Content = str | dict[str, "_Content"] | list[dict[str, "_Content"]]


def _fill(element: ET.Element, content: _Content) -> None:
    if isinstance(content, str):
        element.text = content
    elif isinstance(content, dict):
        for name, inner in content.items():
            for each in inner if isinstance(inner, list) else [inner]:
                attributes: dict[str, str] = {}
                if isinstance(inner, list) and isinstance(each, dict):
                    attributes = {f"{{{_WCM}}}action": "add"}
                    if "@keyValue" in each:
                        attributes[f"{{{_WCM}}}keyValue"] = str(each["@keyValue"])
                        each = {key: value for key, value in each.items() if key != "@keyValue"}
                _fill(ET.SubElement(element, f"{{{_NAMESPACE}}}{name}", attributes), each)


def _passes(answers: Answers) -> dict[str, dict[str, dict[str, _Content]]]:
    locale: dict[str, _Content] = {
        "InputLocale": answers.locale,
        "SystemLocale": answers.locale,
        "UILanguage": answers.locale,
        "UserLocale": answers.locale,
    }
    return {
        "windowsPE": {
            "International-Core-WinPE": {"SetupUILanguage": {"UILanguage": answers.locale}, **locale},
            "PnpCustomizationsWinPE": {"DriverPaths": {"PathAndCredentials": _paths(answers.drivers)}},
            "Setup": _setup(answers),
        },
        # 1: bring disks on all buses online
        "offlineServicing": {"PartitionManager": {"SanPolicy": "1"}},
        "specialize": {"Shell-Setup": {"ComputerName": answers.computer, "TimeZone": "UTC"}},
        "oobeSystem": {"International-Core": locale, "Shell-Setup": _shell(answers)},
    }


def _paths(drivers: Sequence[str]) -> list[dict[str, _Content]]:
    paths = [f"{letter}:\\{driver}" for letter in LETTERS for driver in drivers]
    return [{"@keyValue": str(number), "Path": path} for number, path in enumerate(paths, 1)]


def _setup(answers: Answers) -> dict[str, _Content]:
    key: dict[str, _Content] = {"ProductKey": {"Key": answers.key, "WillShowUI": "OnError"}} if answers.key else {}
    create, modify, partition = _UEFI if answers.uefi else _BIOS
    setup: dict[str, _Content] = {
        "DiskConfiguration": {
            "WillShowUI": "OnError",
            "Disk": [
                {
                    "DiskID": "0",
                    "WillWipeDisk": "true",
                    "CreatePartitions": {"CreatePartition": create},
                    "ModifyPartitions": {"ModifyPartition": modify},
                }
            ],
        },
        "ImageInstall": {
            "OSImage": {
                "InstallFrom": {"MetaData": [{"Key": "/IMAGE/INDEX", "Value": str(answers.index)}]},
                "InstallTo": {"DiskID": "0", "PartitionID": str(partition)},
                "WillShowUI": "OnError",
            }
        },
        "UserData": {"AcceptEula": "true", "FullName": answers.user, **key},
    }
    if answers.bypass:
        commands = [f"reg add HKLM\\SYSTEM\\Setup\\LabConfig /v {name} /t REG_DWORD /d 1 /f" for name in _CHECKS]
        setup["RunSynchronous"] = {
            "RunSynchronousCommand": [
                {"Order": str(number), "Path": command} for number, command in enumerate(commands, 1)
            ]
        }
    return setup


_Layout = tuple[list[dict[str, _Content]], list[dict[str, _Content]], int]

#: The partitions to create, how to format them, and the number of the one with Windows.
_BIOS: _Layout = (
    [{"Order": "1", "Type": "Primary", "Size": "500"}, {"Order": "2", "Type": "Primary", "Extend": "true"}],
    [
        {"Order": "1", "PartitionID": "1", "Active": "true", "Format": "NTFS", "Label": "System"},
        {"Order": "2", "PartitionID": "2", "Format": "NTFS", "Label": "Windows", "Letter": "C"},
    ],
    2,
)
_UEFI: _Layout = (
    [
        {"Order": "1", "Type": "EFI", "Size": "100"},
        {"Order": "2", "Type": "MSR", "Size": "16"},
        {"Order": "3", "Type": "Primary", "Extend": "true"},
    ],
    [
        {"Order": "1", "PartitionID": "1", "Format": "FAT32", "Label": "System"},
        {"Order": "2", "PartitionID": "2"},
        {"Order": "3", "PartitionID": "3", "Format": "NTFS", "Label": "Windows", "Letter": "C"},
    ],
    3,
)


def _shell(answers: Answers) -> dict[str, _Content]:
    password: dict[str, _Content] = {"Value": hidden(answers.password, "Password"), "PlainText": "false"}
    return {
        "AutoLogon": {"Enabled": "true", "LogonCount": "1", "Username": answers.user, "Password": password},
        "FirstLogonCommands": {
            "SynchronousCommand": [{"Order": "1", "CommandLine": answers.command, "RequiresUserInput": "false"}]
        },
        "OOBE": {
            "HideEULAPage": "true",
            "HideLocalAccountScreen": "true",
            "HideOEMRegistrationScreen": "true",
            "HideOnlineAccountScreens": "true",
            "HideWirelessSetupInOOBE": "true",
            "ProtectYourPC": "3",
        },
        "UserAccounts": {
            "LocalAccounts": {
                "LocalAccount": [{"Name": answers.user, "Group": "Administrators", "Password": password}]
            }
        },
    }


def hidden(password: str, element: str) -> str:
    """Return a password as answer files hold it: encoded, which does not protect it."""
    return base64.b64encode((password + element).encode("utf-16-le")).decode()
