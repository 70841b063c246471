"""The text of Windows' scripts. tests/guests/test_flow.py checks what they do together."""

from __future__ import annotations

import base64

import pytest

from obuild.errors import UsageError
from obuild.guests import windows
from obuild.guests.windows_quoting import literal
from obuild.spec import UnixUser, WindowsUser

ADMIN = WindowsUser("ContainerAdministrator")
MARK = "obuild-mark"


def script_in(command: str) -> str:
    """The PowerShell script in a command line."""
    assert command.startswith('cmd /D /S /C "powershell -NoProfile ')
    assert command.endswith(' 2>&1"')
    return base64.b64decode(command.removesuffix(' 2>&1"').split()[-1]).decode("utf-16-le")


def body(command: str) -> str:
    """The same without the lines that every script has."""
    text = script_in(command)
    before = "$ProgressPreference='SilentlyContinue';$ErrorActionPreference='Stop';try{"
    after = ";exit 0}catch{[Console]::Error.WriteLine($_);exit 1}"
    assert text.startswith(before)
    assert text.endswith(after)
    return text.removeprefix(before).removesuffix(after)


def test_a_script_is_read_whole_and_as_utf_8() -> None:
    assert body(windows.root_shell("Administrator")) == (
        "$t=(New-Object IO.StreamReader([Console]::OpenStandardInput(),[Text.Encoding]::UTF8)).ReadToEnd();"
        "& ([ScriptBlock]::Create($t))"
    )


def test_no_command_names_input_so_that_powershell_leaves_stdin_alone() -> None:
    for command in (
        windows.root_shell("x"),
        windows.receive_command("x", "C:/d", ADMIN),
        windows.receive_secret("x", 0),
    ):
        assert "$input" not in script_in(command).lower()
        assert len(command) < 8191


def test_the_script_of_a_step() -> None:
    argv = [r"C:\Windows\System32\cmd.exe", "/S", "/C", "echo 'it' \"works\""]
    text = windows.run_script(argv, cwd="C:/a b", env=[("A", "1 2"), ("B", "é")], user=ADMIN, mark=MARK)
    assert text.decode().splitlines() == [
        "$c=125",
        "try{",
        r"$d='C:\a b'",
        "[void][IO.Directory]::CreateDirectory($d)",
        "$i=New-Object Diagnostics.ProcessStartInfo",
        r"$i.FileName='C:\Windows\System32\cmd.exe'",
        "$i.Arguments='/S /C \"echo ''it'' \"works\"\"'",
        "$i.WorkingDirectory=$d",
        "$i.UseShellExecute=$false",
        "$i.RedirectStandardInput=$true",
        "$e=$i.EnvironmentVariables",
        "foreach($n in @($e.Keys)){if($n -like 'SSH_*' -or $n -eq 'PROMPT'){$e.Remove($n)}}",
        "$e['A']='1 2'",
        "$e['B']=([Text.Encoding]::UTF8.GetString([Convert]::FromBase64String('w6k=')))",
        "$env:Path=$e['Path']",
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
        "$b=[Text.Encoding]::ASCII.GetBytes('obuild-mark'+\" $c`n\")",
        "$o.Write($b,0,$b.Length)",
        "$o.Flush()",
    ]


def test_a_shell_is_an_interactive_powershell() -> None:
    command = windows.shell_command("x", cwd="C:/a b", env=[("A", "it's"), ("B", "é")], user=ADMIN)
    how, _, encoded = command.rpartition(" ")
    assert how == (
        "powershell -NoLogo -NoProfile -NoExit -ExecutionPolicy Bypass -OutputFormat Text -EncodedCommand"
    )
    assert base64.b64decode(encoded).decode("utf-16-le").split(";") == [
        "Remove-Item Env:SSH_*,Env:PROMPT -ErrorAction SilentlyContinue",
        "[Environment]::SetEnvironmentVariable('A','it''s')",
        "[Environment]::SetEnvironmentVariable('B',"
        "([Text.Encoding]::UTF8.GetString([Convert]::FromBase64String('w6k='))))",
        r"$d='C:\a b'",
        "[void][IO.Directory]::CreateDirectory($d)",
        "Set-Location -LiteralPath $d",
    ]
    with pytest.raises(TypeError):
        windows.shell_command("x", cwd="C:/", env=[], user=UnixUser(0, 0))


def test_a_shell_with_too_large_an_environment_is_refused() -> None:
    windows.shell_command("x", cwd="C:/", env=[("A", "x" * 2000)], user=ADMIN)
    with pytest.raises(UsageError, match="too large"):
        windows.shell_command("x", cwd="C:/", env=[("A", "x" * 3000)], user=ADMIN)


def test_a_program_is_named_with_backslashes() -> None:
    argv = ["/cygwin64/bin/bash.exe", "--login", "-c", "ls /x"]
    text = windows.run_script(argv, cwd="C:/", env=[], user=ADMIN, mark=MARK).decode()
    assert "$i.FileName='\\cygwin64\\bin\\bash.exe'" in text
    assert "$i.Arguments='--login -c \"ls /x\"'" in text
    assert "$d='C:\\'" in text


def test_a_tree_is_unpacked_by_windows_own_tar() -> None:
    assert body(windows.receive_command("x", "C:/it's", ADMIN)) == (
        r"$d='C:\it''s';[void][IO.Directory]::CreateDirectory($d);Set-Location -LiteralPath $d;"
        r"""& "$env:SystemRoot\System32\tar.exe" -x -P -f - --options 'hdrcharset=UTF-8';exit $LASTEXITCODE"""
    )


def lines(script: bytes) -> list[str]:
    return script.decode().splitlines()


PUT_BACK = [
    r"foreach($r in (Get-ChildItem -LiteralPath 'C:\obuild-scratch' -Filter *.target|"
    "Sort-Object {[int]$_.BaseName} -Descending)){",
    "$t=[IO.File]::ReadAllText($r.FullName)",
    "[IO.Directory]::Delete($t)",
    '[IO.Directory]::Move("$t.obuild-$($r.BaseName)",$t)',
    "[IO.File]::Delete($r.FullName)",
    "}",
]


def test_a_cache_is_a_junction() -> None:
    assert lines(windows.prepare_scratch()) == [r"[void][IO.Directory]::CreateDirectory('C:\obuild-scratch')"]
    assert lines(windows.open_cache(1, "C:/Users/opam/cache", ADMIN)) == [
        r"$t='C:\Users\opam\cache'",
        "[void][IO.Directory]::CreateDirectory($t)",
        r"[void][IO.Directory]::CreateDirectory('C:\obuild-scratch\1')",
        '[IO.Directory]::Move($t,"$t.obuild-1")',
        r"[IO.File]::WriteAllText('C:\obuild-scratch\1.target',$t)",
        r"[void](New-Item -ItemType Junction -Path $t -Value 'C:\obuild-scratch\1')",
    ]
    assert lines(windows.unpack_cache(1)) == [
        r"""& "$env:SystemRoot\System32\tar.exe" -x -f 'C:\obuild-scratch\1.tar' -C 'C:\obuild-scratch\1'""",
        "if($LASTEXITCODE){exit $LASTEXITCODE}",
        r"[IO.File]::Delete('C:\obuild-scratch\1.tar')",
    ]
    assert lines(windows.pack_cache(1)) == [
        *PUT_BACK,
        r"""& "$env:SystemRoot\System32\tar.exe" -c -f 'C:\obuild-scratch\1.tar' -C 'C:\obuild-scratch\1' .""",
        "exit $LASTEXITCODE",
    ]
    assert lines(windows.close_caches(["C:/c"])) == [
        *PUT_BACK,
        r"cmd /D /C rd /S /Q C:\obuild-scratch",
        r"if(Test-Path -LiteralPath 'C:\obuild-scratch')"
        r"{throw 'cannot remove C:\obuild-scratch: is a file in it in use?'}",
    ]
    assert windows.cache_archive(1) == "C:/obuild-scratch/1.tar"


def test_a_secret_is_a_file_for_the_login_only_and_is_wiped() -> None:
    assert lines(windows.prepare_secrets())[1:3] == [
        "$me='*'+[Security.Principal.WindowsIdentity]::GetCurrent().User.Value+':(OI)(CI)F'",
        r"$said=& icacls 'C:\obuild-secrets' /inheritance:r /grant:r $me '*S-1-5-18:(OI)(CI)F'",
    ]
    received = body(windows.receive_secret("x", 2))
    assert received.startswith(r"$f=[IO.File]::Open('C:\obuild-secrets\2','Create','Write','None');")
    assert received.index("$z.Length);$f.Flush($true)") < received.index("OpenStandardInput")
    assert received.endswith("$f.SetLength($f.Position);$f.Flush($true);$f.Close()")
    assert lines(windows.open_secret(2, "C:/run/s", ADMIN)) == [
        r"$t='C:\run\s'",
        "$p=[IO.Path]::GetDirectoryName($t)",
        'if(Test-Path -LiteralPath $t){[IO.File]::Move($t,"$t.obuild-secret-2")}',
        "$made=@()",
        "for($n=$p;!(Test-Path -LiteralPath $n);$n=[IO.Path]::GetDirectoryName($n)){$made+=$n}",
        r"[IO.File]::WriteAllLines('C:\obuild-secrets\2.made',[string[]]$made)",
        "[void][IO.Directory]::CreateDirectory($p)",
        r"[IO.File]::Move('C:\obuild-secrets\2',$t)",
    ]
    closing = lines(windows.close_secrets(["C:/a", "C:/b"]))
    assert closing[0].startswith("function wipe($f){")
    assert [line for line in closing if line.startswith("$t=")] == [r"$t='C:\b'", r"$t='C:\a'"]
    assert closing[-1] == r"[IO.Directory]::Delete('C:\obuild-secrets')"


def test_files_are_packed_into_a_file_and_put_back_where_they_were() -> None:
    packing = windows.pack_files((r"C:\out", "/it's", "D:/x/."), exclude=["[a]", "^b$"], rename=None, owner=(1, 2))
    arguments = (
        r"-c -f C:\obuild-taken\files.tar --format pax --no-acls --no-xattrs --no-fflags --uid 1 --gid 2 "
        r'--numeric-owner --exclude "\[a]" --exclude "\^b\$" '
        r'-C "C:\\" ./out -C "C:\\" "./it' + "''" + r's" -C D:\x .'
    )
    assert lines(packing.script) == [
        r"[void][IO.Directory]::CreateDirectory('C:\obuild-taken')",
        f"$a='{arguments}'",
        "$e=[Text.Encoding]::Default",
        "if(![string]::Equals($e.GetString($e.GetBytes($a)),$a))"
        '{throw "the code page of this Windows cannot represent: $a"}',
        "$i=New-Object Diagnostics.ProcessStartInfo",
        r'$i.FileName="$env:SystemRoot\System32\tar.exe"',
        "$i.Arguments=$a",
        "$i.UseShellExecute=$false",
        "try{",
        "$p=[Diagnostics.Process]::Start($i)",
        "$p.WaitForExit()",
        "}finally{",
        "}",
        "exit $p.ExitCode",
    ]
    assert packing.file == "C:/obuild-taken/files.tar"
    assert lines(packing.remove) == [r"[IO.Directory]::Delete('C:\obuild-taken',$true)"]


@pytest.mark.parametrize(
    ("source", "old", "folder"),
    [("D:/x/out", r"D:\x\out", r"D:\x"), ("out/.", r"C:\out", "C:"), ("/a b", r"C:\a b", "C:")],
)
def test_a_file_really_has_its_new_name_while_it_is_packed(source: str, old: str, folder: str) -> None:
    moved = literal(rf"{folder}\obuild-renamed\new é")
    text = lines(windows.pack_files((source,), exclude=[], rename="new é", owner=(0, 0)).script)
    assert text[text.index("try{") - 5 : text.index("try{")] == [
        f"$d='{folder}\\obuild-renamed'",
        f"$f='{old}'",
        f"$t={moved}",
        "[void][IO.Directory]::CreateDirectory($d)",
        "[IO.Directory]::Move($f,$t)",
    ]
    assert text[-5:] == [
        "}finally{",
        "[IO.Directory]::Move($t,$f)",
        "[IO.Directory]::Delete($d)",
        "}",
        "exit $p.ExitCode",
    ]
    assert (
        "Move"
        not in windows.pack_files((source,), exclude=[], rename=old.split("\\")[-1], owner=(0, 0)).script.decode()
    )


def test_an_excluded_name_that_no_file_can_have_is_not_passed_to_tar() -> None:
    text = windows.pack_files(
        ("x",), exclude=["*", 'a"b', "a\\b", "a/b", "\udcff", "", "."], rename=None, owner=(0, 0)
    )
    assert b"--exclude" not in text.script


def test_powering_off_from_inside() -> None:
    assert lines(windows.power_off())[0] == r'& "$env:SystemRoot\System32\shutdown.exe" /s /t 0'


@pytest.mark.parametrize(
    "word", ["a'b", "a;b", "$(exit)", "`n", '"', "’; exit; ’", "a\nexit", "é", "[x]", "%PATH%"]
)
def test_no_word_of_a_spec_is_read_by_powershell(word: str) -> None:
    """It does not appear outside single quotes."""
    scripts = [
        windows.run_script(["x", word], cwd=f"C:/{word}", env=[("A", word)], user=ADMIN, mark=MARK).decode(),
        windows.open_cache(0, f"C:/{word}", ADMIN).decode(),
        windows.open_secret(0, f"C:/{word}", ADMIN).decode(),
        windows.close_secrets([f"C:/{word}"]).decode(),
        windows.pack_files([f"C:/{word}"], exclude=[], rename="x", owner=(0, 0)).script.decode(),
        body(windows.receive_command("x", f"C:/{word}", ADMIN)),
    ]
    plain = [
        windows.run_script(["x", "w"], cwd="C:/w", env=[("A", "w")], user=ADMIN, mark=MARK).decode(),
        windows.open_cache(0, "C:/w", ADMIN).decode(),
        windows.open_secret(0, "C:/w", ADMIN).decode(),
        windows.close_secrets(["C:/w"]).decode(),
        windows.pack_files(["C:/w"], exclude=[], rename="x", owner=(0, 0)).script.decode(),
        body(windows.receive_command("x", "C:/w", ADMIN)),
    ]
    assert [outside(text) for text in scripts] == [outside(text) for text in plain]


def outside(text: str) -> str:
    """A script without its single-quoted strings, and without the code that decodes those in base64."""
    assert text.isascii()
    bare = "".join(text.replace("''", "").split("'")[::2])
    return bare.replace("([Text.Encoding]::UTF8.GetString([Convert]::FromBase64String()))", "")


def test_a_windows_guest_has_no_numbered_users() -> None:
    with pytest.raises(TypeError):
        windows.receive_command("x", "C:/d", UnixUser(0, 0))
