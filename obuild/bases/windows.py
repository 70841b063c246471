"""Make a base image with Windows Setup: an answer file, a CD with drivers, and a script at the first logon.

This was never tested with a real Windows. docs/recipes.md says what was tested.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from obuild.bases import answer_file, installation, media, remote, seed, unattended, work_folder
from obuild.bases.kind import Making, Recipe
from obuild.bases.remote import Remote
from obuild.bases.sources import Sources
from obuild.bases.table import Table
from obuild.bases.unattended import Verdict
from obuild.errors import UsageError
from obuild.executors.qemu.devices import Bus
from obuild.executors.qemu.machine import Machine
from obuild.guests.profile import Card

#: The defaults of `timeout` and `memory`.
TIMEOUT = "4h"
MEMORY = "4G"

#: Setup reboots two or three times, and driver updates may cause a few more. More than ten are a loop.
REBOOTS = 10

#: How long to press Enter, in seconds: with UEFI, the ISO waits for a key before it boots.
PRESS = 15

#: The files on our CD besides the answer file.
SCRIPT, OPENSSH = "obuild/setup.ps1", "obuild/OpenSSH.msi"

#: The script's report on COM1.
OK, FAILED = "obuild: ok", "obuild: failed: "

_KEY = re.compile(r"([A-Z0-9]{5}-){4}[A-Z0-9]{5}")
_LOCALE = re.compile(r"[a-z]{2,3}-[A-Z]{2}")
_FOLDER = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class Options:
    """The table [windows].

    `index` is that of the image in install.wim; `key` is "" if the ISO needs none. `driver` is the name of this
    Windows in the drivers' folders. cmd.exe runs `commands` at the end; all must succeed.
    """

    iso: Remote
    drivers: Remote
    openssh: Remote
    index: int
    key: str
    locale: str
    driver: str
    bypass: bool
    tpm: bool
    commands: tuple[str, ...]
    memory: int
    timeout: float


def parse(table: Table, sources: Sources, card: Card) -> Options:
    """See `Kind.parse`."""
    table.only(
        *("iso", "drivers", "openssh", "index", "key", "locale", "driver-folder", "bypass", "tpm"),
        *("commands", "memory", "timeout"),
    )
    if card.os != "windows" or card.arch != "x86_64" or card.firmware == "kernel":
        hint = 'os = "windows", arch = "x86_64", firmware = "bios" or "uefi"'
        raise UsageError(f"{table.where}: the card does not fit Windows", hint=hint)
    index = table.get("index", 1)
    if not isinstance(index, int) or isinstance(index, bool) or index < 1:
        raise table.error("index", "index must be a whole number, from 1", hint="DISM /Get-WimInfo lists them")
    key_hint = "five times five letters and digits; leave it out for evaluation media"
    return Options(
        iso=remote.parse(table.table("iso"), sources),
        drivers=remote.parse(table.table("drivers"), sources),
        openssh=remote.parse(table.table("openssh"), sources),
        index=index,
        key=table.match("key", _KEY, hint=key_hint) if "key" in table else "",
        locale=table.match("locale", _LOCALE, hint="write it like en-US", default="en-US"),
        driver=table.match("driver-folder", _FOLDER, hint="write it like 2k22 or w11", default="2k22"),
        bypass=table.flag("bypass", default=False),
        tpm=table.flag("tpm", default=False),
        commands=table.strings("commands"),
        memory=table.size("memory", smallest=1 << 30, default=MEMORY),
        timeout=table.duration("timeout", default=TIMEOUT),
    )


def unpinned(recipe: Recipe) -> str:
    """See `Kind.unpinned`."""
    options: Options = recipe.options
    return remote.unpinned(options.iso, options.drivers, options.openssh)


def seeds(recipe: Recipe, public_key: str, folder: Path) -> tuple[Path, ...]:
    """See `Kind.seeds`. The only one has a file to download."""
    return ()


def make(recipe: Recipe, out: Path, making: Making) -> Card:
    """See `Kind.make`."""
    options: Options = recipe.options
    unattended.check_host(recipe.card, tpm=options.tpm)
    with work_folder.folder_in(out.parent) as work:
        answers = work / "answers.iso"
        read: list[tuple[Path, Bus]] = [
            (unattended.fetched(options.iso, work / "windows.iso", making), "cdrom"),
            (unattended.fetched(options.drivers, work / "drivers.iso", making), "cdrom"),
            (answers, "cdrom"),
        ]
        openssh = making.fetch(options.openssh).read_bytes()
        password = secrets.token_urlsafe(18)
        answers.write_bytes(seed.iso(seed_files(recipe, making.public_key, openssh, password), label="OBUILD"))
        making.say(f"{recipe.name}: installing Windows; obuild has not been tried with a real one yet")
        return installation.install(
            recipe,
            out,
            making,
            work=work,
            read=read,
            memory=options.memory,
            timeout=options.timeout,
            reboots=REBOOTS,
            press=PRESS if recipe.card.firmware == "uefi" else 0,
            tpm=options.tpm,
            judge=judge,
        )


def judge(running: Machine, problem: str) -> Verdict:
    """The installation succeeded if the script at the first logon says so on COM1; a power-off is not enough."""
    said = running.console().splitlines()
    failed = [line.partition(FAILED)[2] for line in said if FAILED in line]
    if failed:
        return Verdict(f"the script at the first logon failed: {failed[-1]}")
    if not problem and not any(line.strip() == OK for line in said):
        return Verdict("the guest powered off before the script at the first logon was done")
    return Verdict(problem)


def seed_files(recipe: Recipe, public_key: str, openssh: bytes, password: str) -> dict[str, bytes]:
    """Return the files on the CD where Setup finds its answer file."""
    options: Options = recipe.options
    answers = answer_file.Answers(
        index=options.index,
        key=options.key,
        locale=options.locale,
        user=recipe.card.login,
        password=password,
        computer="OBUILD",
        uefi=recipe.card.firmware == "uefi",
        bypass=options.bypass,
        drivers=[f"{driver}\\{options.driver}\\amd64" for driver in ("viostor", "NetKVM", "vioserial", "viorng")],
        command=first_logon(),
    )
    script = setup_script(options.commands, public_key)
    return {
        "autounattend.xml": answer_file.render(answers),
        # without a byte order mark, PowerShell 5 reads it as text in the code page
        SCRIPT: script.replace("\n", "\r\n").encode("utf-8-sig"),
        OPENSSH: openssh,
    }


def first_logon() -> str:
    """Return the command that finds the CD, whatever its letter is, and runs the script on it."""
    path = SCRIPT.replace("/", "\\")
    run = f"powershell -NoProfile -ExecutionPolicy Bypass -File %d:\\{path}"
    return f"cmd /c for %d in ({' '.join(answer_file.LETTERS)}) do if exist %d:\\{path} {run}"


def setup_script(commands: tuple[str, ...], public_key: str) -> str:
    """Return the script for the first logon. At its end it reports the result and powers off."""
    key = public_key.strip()
    own = [f"    run cmd.exe '/c', {_quoted(command.replace(media.KEY, key))}" for command in commands]
    msi = OPENSSH.rpartition("/")[2]
    return _SCRIPT.format(key=_quoted(key), own="\n".join(own), ok=OK, failed=FAILED, msi=msi)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


_SCRIPT = """\
$ErrorActionPreference = 'Stop'
function run($program, $arguments) {{
    $done = Start-Process $program -ArgumentList $arguments -Wait -PassThru -NoNewWindow
    if ($done.ExitCode -notin 0, 3010) {{ throw "$program $arguments ended with $($done.ExitCode)" }}
}}
function say($text) {{
    $port = New-Object IO.Ports.SerialPort 'COM1', 115200
    $port.Open()
    $port.WriteLine($text)
    $port.Close()
}}
try {{
    # OpenSSH from the CD: Add-WindowsCapability would ask Windows Update.
    run msiexec.exe "/i `"$PSScriptRoot\\{msi}`" /qn /norestart ADDLOCAL=Server"
    Set-Service sshd -StartupType Automatic
    $keys = "$env:ProgramData\\ssh\\administrators_authorized_keys"
    New-Item -ItemType Directory -Force (Split-Path $keys) | Out-Null
    [IO.File]::WriteAllText($keys, {key} + "`n")  # without a byte order mark
    # by their SIDs, for names are translated: SYSTEM and the administrators
    run icacls.exe "`"$keys`" /inheritance:r /grant *S-1-5-18:F /grant *S-1-5-32-544:F"
    Remove-NetFirewallRule -Name obuild-sshd -ErrorAction SilentlyContinue
    New-NetFirewallRule -Name obuild-sshd -DisplayName 'OpenSSH for obuild' -Direction Inbound -Protocol TCP `
        -LocalPort 22 -Action Allow -Profile Any | Out-Null
    # A step must find the machine as the last one left it: awake, not hibernated, not updating itself.
    run powercfg.exe '/hibernate off'
    run powercfg.exe '/setactive 8c5e7fda-e8bf-4a96-9a85-a6e23a8c635c'
    run powercfg.exe '/change standby-timeout-ac 0'
    $policy = 'HKLM\\SOFTWARE\\Policies\\Microsoft\\Windows\\WindowsUpdate\\AU'
    run reg.exe "add $policy /v NoAutoUpdate /t REG_DWORD /d 1 /f"
    Set-Service wuauserv -StartupType Disabled
    run net.exe 'accounts /maxpwage:unlimited'
{own}
    say '{ok}'
}} catch {{
    say ('{failed}' + ($_ -replace '\\s+', ' '))
}}
shutdown.exe /s /t 5
"""
