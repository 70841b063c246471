"""Windows command lines: the quoting, and what real parsers read back."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from obuild.guests.windows_quoting import argument, arguments, is_cmd, literal, powershell
from tests.support.guests import read_back

WINE = shutil.which("wine")
needs_wine = pytest.mark.skipif(not WINE, reason="needs wine, whose programs read command lines as Windows does")

#: Each must arrive unchanged.
WORDS = [
    "", "plain", "two words", "tab\there", 'say "hi"', '"', '""', "it's", "\\", "\\\\", "C:\\dir\\", "C:\\a b\\",
    'back\\"slash', 'two\\\\"', "ends in \\\\", "%PATH%", "^caret^", "a&b", "a|b",
    "<in>", "(x)", "!x!", "$x", "`x`",
    "é€😀", "new\nline", "*", "?.txt", "@file", "~", "{a,b}", "-n", "/S", "a=b;c,d", "’quote’",
]  # fmt: skip


@pytest.mark.parametrize(
    ("word", "spelled"),
    [
        ("plain", "plain"),
        ("C:\\dir\\x", "C:\\dir\\x"),
        ("", '""'),
        ("a b", '"a b"'),
        ("C:\\dir\\", '"C:\\dir\\\\"'),
        ('say "hi"', '"say \\"hi\\""'),
        ('a\\"b', '"a\\\\\\"b"'),
        ("*", '"*"'),
        ("it's", '"it\'s"'),
    ],
)
def test_the_quoting_of_a_word(word: str, spelled: str) -> None:
    assert argument(word) == spelled


@pytest.mark.parametrize("word", WORDS)
def test_the_rules_of_the_manual_read_the_word_back(word: str) -> None:
    assert read_back(arguments(["x.exe", word, "end"])) == [word, "end"]


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["cmd", "/S", "/C", 'echo "%A%" & dir "C:\\x y"'], '/S /C "echo "%A%" & dir "C:\\x y""'),
        ([r"C:\Windows\System32\cmd.exe", "/c", "dir"], '/S /c "dir"'),
        (["CMD.EXE", "/D", "/Q", "/K", "a\\"], '/D /Q /S /K "a\\"'),
        (["cmd", "/S", "/C", "call", "x.bat"], '/S /C "call x.bat"'),
        (["cmd", "dir"], "dir"),
        (["powershell", "-Command", 'echo "a b"'], '-Command "echo \\"a b\\""'),
        ([r"C:\cygwin64\bin\bash.exe", "--login", "-c", "ls *"], '--login -c "ls *"'),
    ],
)
def test_cmd_gets_its_command_verbatim_and_other_programs_get_words(argv: list[str], line: str) -> None:
    assert arguments(argv) == line


def test_a_program_with_a_name_like_cmd_is_not_cmd() -> None:
    assert not is_cmd(["notcmd.exe", "/C", "x"])
    assert not is_cmd(["cmd", "/C"])
    assert is_cmd(["C:/Windows/cmd.exe", "/C", "x"])


def value(expression: str) -> str:
    """The text in PowerShell's single quotes or in base64."""
    if found := re.fullmatch(r"'((?:[^']|'')*)'", expression):
        return found[1].replace("''", "'")
    found = re.fullmatch(r"\(\[Text\.Encoding\].*'([A-Za-z0-9+/=]*)'\)\)\)", expression)
    assert found
    return base64.b64decode(found[1]).decode()


@pytest.mark.parametrize("word", WORDS)
def test_a_literal_is_ascii_and_evaluates_to_the_word(word: str) -> None:
    spelled = literal(word)
    assert value(spelled) == word
    assert spelled.isascii()
    assert spelled.isprintable()


def test_cmd_and_powershell_parse_the_command_line_alike() -> None:
    line = powershell("'x'")
    assert re.fullmatch(r'cmd /D /S /C "powershell( -\w+)*( Bypass| Text)?( -\w+)*( \w+)*'
                        r' -EncodedCommand [A-Za-z0-9+/=]+ 2>&1"', line)  # fmt: skip
    script = base64.b64decode(line.split()[-2]).decode("utf-16-le")
    assert script.endswith("try{'x';exit 0}catch{[Console]::Error.WriteLine($_);exit 1}")
    assert "-NoProfile -NonInteractive -ExecutionPolicy Bypass" in line


# -- parsed by wine


@pytest.fixture(scope="module")
def wine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment with a Windows of its own, without the parts that open windows."""
    env = {
        **os.environ,
        "WINEPREFIX": str(tmp_path_factory.mktemp("wine") / "prefix"),
        "WINEDEBUG": "-all",
        "WINEDLLOVERRIDES": "mscoree,mshtml=;winemenubuilder.exe=d",
    }
    assert WINE
    subprocess.run([WINE, "cmd", "/c", "ver"], env=env, capture_output=True, check=True, timeout=120)
    return env


def in_wine(env: dict[str, str], argv: list[str]) -> bytes:
    """What a Windows program prints whose command line is ours.

    wine quotes the words it is given by the rules of `argument`; so a raw line can only go through a program
    that passes on the rest of its own line as it stands, and cmd's /C does: a batch file holds ours.
    """
    assert WINE
    batch = Path(env["WINEPREFIX"]) / "drive_c" / "line.bat"
    line = f"@{argv[0]} {arguments(argv)}".replace("%", "%%")
    batch.write_bytes(line.encode() + b"\r\n")
    return subprocess.run(
        [WINE, "cmd", "/c", r"C:\line.bat"], env=env, capture_output=True, check=True, timeout=60
    ).stdout


@needs_wine
@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("echo hello", b"hello"),
        ('echo "two  words"', b'"two  words"'),
        ("echo one& echo two", b"one\r\ntwo"),
        ('cd /d "C:\\windows" && cd', b"C:\\windows"),
        ("echo a^&b", b"a&b"),
        ("if 1==1 (echo yes) else echo no", b"yes"),
    ],
)
def test_cmd_runs_a_command_verbatim(wine: dict[str, str], command: str, said: bytes) -> None:
    assert in_wine(wine, ["cmd", "/S", "/C", command]).strip().replace(b"C:\\Windows", b"C:\\windows") == said


#: What a line of a batch file can hold: one line of ASCII, without a special character of cmd at an inner quote.
IN_A_BATCH = [
    word
    for word in WORDS
    if word.isascii() and "\n" not in word and not ('"' in word and re.search("[&|<>^]", word))
]


@needs_wine
def test_windows_reads_the_words_back(wine: dict[str, str], tmp_path: Path) -> None:
    """wine parses the line like CommandLineToArgvW when a Windows program starts a Linux program."""
    assert WINE
    program = tmp_path / "show.sh"
    program.write_text(f'#!/bin/sh\nout={tmp_path}/$1; shift; printf "%s\\0" "$@" >$out.new; mv $out.new $out\n')
    program.chmod(0o755)
    batch = tmp_path / "all.bat"
    windows = "Z:" + str(program).replace("/", "\\")
    lines = [f"@{windows} {at} {arguments(['x', word, 'end'])}" for at, word in enumerate(IN_A_BATCH)]
    batch.write_bytes("".join(f"{line}\r\n".replace("%", "%%") for line in lines).encode())
    subprocess.run([WINE, "cmd", "/c", "Z:" + str(batch).replace("/", "\\")], env=wine, check=False, timeout=120)
    seen = {}
    for at, word in enumerate(IN_A_BATCH):
        path = tmp_path / str(at)
        deadline = time.monotonic() + 30
        while not path.exists() and time.monotonic() < deadline:  # cmd does not wait for a Linux program
            time.sleep(0.02)
        seen[word] = path.read_bytes().decode().split("\0")[:-1]
    assert seen == {word: [word, "end"] for word in IN_A_BATCH}
