r"""The commands of a Windows guest: PowerShell scripts for the stdin of an administrator's shell.

The guest needs Windows 10 or Server 2019, or later (they have PowerShell 5.1, tar.exe and OpenSSH's server),
and a login that is an administrator: over SSH it has all its rights at once.

Scripts do not go to `powershell -Command -`, which reads stdin as if it were typed: a block without an empty
line after it never runs, and letters depend on the code page. Instead a fixed `-EncodedCommand` reads all of
stdin as UTF-8 and runs it as one script block. PowerShell does not read stdin unless a command uses `$input`,
so streams of bytes work the same way.

Becoming another user takes a password, so every command runs as the login user.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from obuild.errors import UsageError
from obuild.guests import rules
from obuild.guests.tar import Packing, bsdtar_options, names, split
from obuild.guests.windows_quoting import arguments, literal, powershell, typed_powershell
from obuild.spec import UnixUser, WindowsUser

#: Where caches are in the guest while a step runs; removed before the layer is sealed.
SCRATCH = r"C:\obuild-scratch"

#: Where the values of secrets are received in the guest; only the login user and the system have access.
SECRETS = r"C:\obuild-secrets"

#: Where files are packed for a copy from a build.
TAKEN = r"C:\obuild-taken"
PACKED = rf"{TAKEN}\files.tar"

#: The folder, beside a file, in which it has its new name while it is packed: a rename cannot leave the volume.
ASIDE = "obuild-renamed"

_TAR = r'& "$env:SystemRoot\System32\tar.exe"'

#: Overwrite a file with zeros, flush it to the disk, and delete it.
_WIPE = (
    "function wipe($f){[IO.File]::SetAttributes($f,'Normal');$o=[IO.File]::Open($f,'Open','Write','None');"
    "$z=New-Object byte[] $o.Length;$o.Write($z,0,$z.Length);$o.Flush($true);$o.Close();[IO.File]::Delete($f)}"
)


def root_shell(login: str) -> str:
    """The command that runs a script from its stdin."""
    return powershell(
        "$t=(New-Object IO.StreamReader([Console]::OpenStandardInput(),[Text.Encoding]::UTF8)).ReadToEnd();"
        "& ([ScriptBlock]::Create($t))"
    )


def run_script(
    argv: Iterable[str],
    *,
    cwd: str,
    env: Iterable[tuple[str, str]],
    user: UnixUser | WindowsUser,
    mark: str,
) -> bytes:
    """Run argv in `cwd`; then print `mark`, the exit status and a newline, in the same pipe.

    The command gets the environment of a new login and the spec's variables, but no variables of SSH. Its output
    goes to the pipe unchanged. An exit code beyond 255 is printed as text, and becomes 255.
    """
    _check(user)
    words = list(argv)
    return _script(
        [
            "$c=125",
            "try{",
            f"$d={literal(_native(cwd))}",
            "[void][IO.Directory]::CreateDirectory($d)",
            "$i=New-Object Diagnostics.ProcessStartInfo",
            f"$i.FileName={literal(_native(words[0]))}",
            f"$i.Arguments={literal(arguments(words))}",
            "$i.WorkingDirectory=$d",
            "$i.UseShellExecute=$false",
            "$i.RedirectStandardInput=$true",
            "$e=$i.EnvironmentVariables",
            "foreach($n in @($e.Keys)){if($n -like 'SSH_*' -or $n -eq 'PROMPT'){$e.Remove($n)}}",
            *(f"$e[{literal(name)}]={literal(value)}" for name, value in env),
            "$env:Path=$e['Path']",  # where programs without a folder are searched
            "try{[Console]::OutputEncoding=New-Object Text.UTF8Encoding $false}catch{}",
            "$c=127",
            "$p=[Diagnostics.Process]::Start($i)",
            "$p.StandardInput.Close()",
            "$p.WaitForExit()",
            "$c=$p.ExitCode",
            "}catch{[Console]::Error.WriteLine($_.Exception.Message)}",
            "if($c -lt 0 -or $c -gt 255){",
            "[Console]::Error.WriteLine(('exit code {0} (0x{0:X8})' -f $c))",
            "$c=255",
            "}",
            "$o=[Console]::OpenStandardOutput()",
            f'$b=[Text.Encoding]::ASCII.GetBytes({literal(mark)}+" $c`n")',
            "$o.Write($b,0,$b.Length)",
            "$o.Flush()",
        ]
    )


def shell_command(login: str, *, cwd: str, env: Iterable[tuple[str, str]], user: UnixUser | WindowsUser) -> str:
    """The command line of a PowerShell in the place of `run_script`'s command.

    UsageError if the environment does not fit in a command line of cmd.exe, to which sshd passes it.
    """
    _check(user)
    line = typed_powershell(
        ";".join(
            [
                "Remove-Item Env:SSH_*,Env:PROMPT -ErrorAction SilentlyContinue",
                *(
                    f"[Environment]::SetEnvironmentVariable({literal(name)},{literal(value)})"
                    for name, value in env
                ),
                f"$d={literal(_native(cwd))}",
                "[void][IO.Directory]::CreateDirectory($d)",
                "Set-Location -LiteralPath $d",
            ]
        )
    )
    if len(line) > rules.MAX_CMD_LINE:
        raise UsageError(
            "the step's environment is too large for a command line on Windows",
            hint="`obuild run` takes an environment of any size",
        )
    return line


def pack_files(
    src: Iterable[str], *, exclude: Iterable[str], rename: str | None, owner: tuple[int, int]
) -> Packing:
    """Pack files of the guest for a copy from a build, into a file: PowerShell turns what it pipes into text.

    This tar.exe cannot rename what it packs, so a file or folder really has its new name meanwhile, in a folder
    beside it. It reads its command line in the system's code page; names that are not in it are refused.
    """
    words = ["-c", "-f", PACKED, *bsdtar_options(owner)]
    words += [word for name in names(exclude) if _can_be(name) for word in ("--exclude", _pattern(name))]
    before: list[str] = []
    after: list[str] = []
    for path in src:
        folder, name = _place(path)
        if rename is not None:
            folder, name = rules.split(rules.join("windows", "C:/", path))
            if name != rename:
                before, after = _rename(folder, name, rename)
                folder, name = _below(folder, ASIDE), rename
        words += ["-C", _native(folder), f"./{name}" if name != "." else name]
    return Packing(
        _script(
            [
                f"[void][IO.Directory]::CreateDirectory('{TAKEN}')",
                f"$a={literal(arguments(['tar.exe', *words]))}",
                "$e=[Text.Encoding]::Default",
                "if(![string]::Equals($e.GetString($e.GetBytes($a)),$a))"
                '{throw "the code page of this Windows cannot represent: $a"}',
                "$i=New-Object Diagnostics.ProcessStartInfo",
                r'$i.FileName="$env:SystemRoot\System32\tar.exe"',
                "$i.Arguments=$a",
                "$i.UseShellExecute=$false",
                *before,
                "try{",
                "$p=[Diagnostics.Process]::Start($i)",
                "$p.WaitForExit()",
                "}finally{",
                *after,
                "}",
                "exit $p.ExitCode",
            ]
        ),
        file=PACKED.replace("\\", "/"),
        remove=_script([f"[IO.Directory]::Delete('{TAKEN}',$true)"]),
    )


def _rename(folder: str, name: str, rename: str) -> tuple[list[str], list[str]]:
    """Lines that rename a file, into the folder ASIDE, and lines that rename it back. A link is not followed."""
    aside = _below(folder, ASIDE)
    lines = [
        f"$d={literal(_native(aside))}",
        f"$f={literal(_native(_below(folder, name)))}",
        f"$t={literal(_native(_below(aside, rename)))}",
        "[void][IO.Directory]::CreateDirectory($d)",
        "[IO.Directory]::Move($f,$t)",
    ]
    return lines, ["[IO.Directory]::Move($t,$f)", "[IO.Directory]::Delete($d)"]


def _place(path: str) -> tuple[str, str]:
    """The folder of a source, and its name there; the name `.` stands for the content of the folder."""
    place = rules.join("windows", "C:/", path)
    if split(rules.slashes("windows", path))[1] == ".":
        return place, "."
    folder, name = rules.split(place)
    return folder, name or "."


def _below(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}"


def _can_be(name: str) -> bool:
    """Whether a file can have this name."""
    return not re.search('[\0-\x1f<>:"/\\\\|?*\ud800-\udfff]', name)


def _pattern(name: str) -> str:
    """A pattern for tar's --exclude that matches only this name."""
    return re.sub(r"([\[^$])", r"\\\1", name)


def receive_command(login: str, dest: str, user: UnixUser | WindowsUser) -> str:
    """The command line that unpacks a tar stream from stdin in the folder `dest`.

    tar.exe reads its command line in the system's code page, so it is started in `dest`, which is not an argument.
    A link to a folder is followed, not replaced (-P); names in the stream are UTF-8, whatever the code page.
    """
    _check(user)
    return powershell(
        f"$d={literal(_native(dest))};[void][IO.Directory]::CreateDirectory($d);Set-Location -LiteralPath $d;"
        f"{_TAR} -x -P -f - --options 'hdrcharset=UTF-8';exit $LASTEXITCODE"
    )


def prepare_scratch() -> bytes:
    """Make the scratch folder."""
    return _script([f"[void][IO.Directory]::CreateDirectory('{SCRATCH}')"])


def open_cache(slot: int, target: str, user: UnixUser | WindowsUser) -> bytes:
    """Put what is at `target` aside and a junction to an empty folder in its place; record that."""
    _check(user)
    return _script(
        [
            f"$t={literal(_native(target))}",
            "[void][IO.Directory]::CreateDirectory($t)",
            f"[void][IO.Directory]::CreateDirectory('{SCRATCH}\\{slot}')",
            f'[IO.Directory]::Move($t,"$t.obuild-{slot}")',
            f"[IO.File]::WriteAllText('{SCRATCH}\\{slot}.target',$t)",
            f"[void](New-Item -ItemType Junction -Path $t -Value '{SCRATCH}\\{slot}')",
        ]
    )


def unpack_cache(slot: int) -> bytes:
    """Unpack SCRATCH/SLOT.tar into its cache folder."""
    archive = f"{SCRATCH}\\{slot}.tar"
    return _script(
        [
            f"{_TAR} -x -f '{archive}' -C '{SCRATCH}\\{slot}'",
            "if($LASTEXITCODE){exit $LASTEXITCODE}",
            f"[IO.File]::Delete('{archive}')",
        ]
    )


def pack_cache(slot: int) -> bytes:
    """Pack a cache folder into SCRATCH/SLOT.tar.

    The first call puts back what was at the targets of all caches, last first: the junction of a cache inside
    another must not be packed with that.
    """
    return _script(
        [
            *_put_back(),
            f"{_TAR} -c -f '{SCRATCH}\\{slot}.tar' -C '{SCRATCH}\\{slot}' .",
            "exit $LASTEXITCODE",
        ]
    )


def close_caches(targets: Iterable[str]) -> bytes:
    """Put back what was at the targets, unless that was done, and remove every trace of the caches.

    rd does not follow a junction that a command may have left in its cache. It fails silently, hence the check.
    """
    return _script(
        [
            *_put_back(),
            f"cmd /D /C rd /S /Q {SCRATCH}",
            f"if(Test-Path -LiteralPath '{SCRATCH}'){{throw 'cannot remove {SCRATCH}: is a file in it in use?'}}",
        ]
    )


def cache_archive(slot: int) -> str:
    """The path of a cache's archive in the guest, for scp and tar."""
    return f"C:/obuild-scratch/{slot}.tar"


def prepare_secrets() -> bytes:
    """Make the folder for secrets; only the login user and the system have access to what is in it."""
    return _script(
        [
            f"[void][IO.Directory]::CreateDirectory('{SECRETS}')",
            "$me='*'+[Security.Principal.WindowsIdentity]::GetCurrent().User.Value+':(OI)(CI)F'",
            f"$said=& icacls '{SECRETS}' /inheritance:r /grant:r $me '*S-1-5-18:(OI)(CI)F'",
            "if($LASTEXITCODE){throw $said}",
        ]
    )


def receive_secret(login: str, slot: int) -> str:
    """The command that takes a secret's value from stdin.

    There is no file system in memory. The file is made large first: NTFS keeps the bytes of a small one in its own
    tables, and writes them to its journal, where nothing wipes them. Once outside the tables, they stay outside.
    """
    return powershell(
        f"$f=[IO.File]::Open('{SECRETS}\\{slot}','Create','Write','None');$z=New-Object byte[] 65536;"
        "$f.Write($z,0,$z.Length);$f.Flush($true);$f.Position=0;[Console]::OpenStandardInput().CopyTo($f);"
        "$f.SetLength($f.Position);$f.Flush($true);$f.Close()"
    )


def open_secret(slot: int, target: str, user: UnixUser | WindowsUser) -> bytes:
    """Move a secret's file to `target`, with its access rights; record what had to be made for that."""
    _check(user)
    return _script(
        [
            f"$t={literal(_native(target))}",
            "$p=[IO.Path]::GetDirectoryName($t)",
            f'if(Test-Path -LiteralPath $t){{[IO.File]::Move($t,"$t.obuild-secret-{slot}")}}',
            "$made=@()",
            "for($n=$p;!(Test-Path -LiteralPath $n);$n=[IO.Path]::GetDirectoryName($n)){$made+=$n}",
            f"[IO.File]::WriteAllLines('{SECRETS}\\{slot}.made',[string[]]$made)",
            "[void][IO.Directory]::CreateDirectory($p)",
            f"[IO.File]::Move('{SECRETS}\\{slot}',$t)",
        ]
    )


def close_secrets(targets: Iterable[str]) -> bytes:
    """Overwrite the values, delete them, and remove the folders made for them."""
    lines = [_WIPE]
    for slot, target in reversed(tuple(enumerate(targets))):
        aside = f'"$t.obuild-secret-{slot}"'
        lines += [
            f"$t={literal(_native(target))}",
            "if([IO.File]::Exists($t)){wipe $t}",
            f"if([IO.File]::Exists({aside})){{[IO.File]::Move({aside},$t)}}",
            f"foreach($n in [IO.File]::ReadAllLines('{SECRETS}\\{slot}.made'))"
            "{try{[IO.Directory]::Delete($n)}catch{break}}",
        ]
    return _script(
        [
            *lines,
            f"foreach($f in [IO.Directory]::GetFiles('{SECRETS}')){{wipe $f}}",
            f"[IO.Directory]::Delete('{SECRETS}')",
        ]
    )


def power_off() -> bytes:
    """Power off from inside, for a guest that does not react to the power button."""
    return _script([r'& "$env:SystemRoot\System32\shutdown.exe" /s /t 0', "exit $LASTEXITCODE"])


def _put_back() -> list[str]:
    """Remove the junctions (a plain Delete removes only the link) and move back what was at their place."""
    return [
        f"foreach($r in (Get-ChildItem -LiteralPath '{SCRATCH}' -Filter *.target|"
        "Sort-Object {[int]$_.BaseName} -Descending)){",
        "$t=[IO.File]::ReadAllText($r.FullName)",
        "[IO.Directory]::Delete($t)",
        '[IO.Directory]::Move("$t.obuild-$($r.BaseName)",$t)',
        "[IO.File]::Delete($r.FullName)",
        "}",
    ]


def _native(path: str) -> str:
    """A path with backslashes, which every program accepts. A drive's root keeps its last one."""
    return path.replace("/", "\\")


def _check(user: UnixUser | WindowsUser) -> None:
    if isinstance(user, UnixUser):
        raise TypeError("a Windows guest knows users by name")  # plan refuses it with the op's line


def _script(lines: Iterable[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode()
