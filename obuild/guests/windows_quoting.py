"""Quoting for Windows, where a command line is one string that each program parses itself.

Sources: "Parsing C command-line arguments" (Microsoft C runtime; CommandLineToArgvW reads the same way);
`cmd /?` for /S; about_Quoting_Rules and about_PowerShell_exe for PowerShell.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence

#: The words that need no quotes: no parser treats these characters specially. (Cygwin's programs expand globs
#: that are not in quotes.)
_PLAIN = re.compile(r"[A-Za-z0-9_./:\\+=,-]*[A-Za-z0-9_./:+=,-]")

#: The PowerShell that every Windows has: it reads no profile, asks nothing, and ignores script policies. Without
#: `-OutputFormat Text`, errors of an encoded command would be XML.
_POWERSHELL = "powershell -NoProfile -NonInteractive -ExecutionPolicy Bypass -OutputFormat Text -EncodedCommand "
_TYPED = "powershell -NoLogo -NoProfile -NoExit -ExecutionPolicy Bypass -OutputFormat Text -EncodedCommand "


def argument(word: str) -> str:
    """Quote a word for CommandLineToArgvW.

    A backslash stands for itself, unless a double quote follows the run of backslashes that it is in: then two
    stand for one, and one more makes the quote literal.
    """
    if _PLAIN.fullmatch(word):
        return word
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', word)
    return '"' + re.sub(r"(\\+)\Z", r"\1\1", escaped) + '"'


def arguments(argv: Sequence[str]) -> str:
    """The command line after the program.

    cmd.exe has a parser of its own: with /S it removes the first and the last double quote after /C and leaves
    everything between them alone, which is what a spec's command means. Without /S it does so only sometimes,
    so /S is added.
    """
    words = argv[1:]
    if is_cmd(argv):
        at = next(at for at, word in enumerate(words) if word.lower() in ("/c", "/k"))
        before = [argument(word) for word in words[: at + 1]]
        if "/s" not in (word.lower() for word in words[:at]):
            before.insert(at, "/S")
        return f'{" ".join(before)} "{" ".join(words[at + 1 :])}"'
    return " ".join(argument(word) for word in words)


def is_cmd(argv: Sequence[str]) -> bool:
    """Whether argv is cmd.exe with a command to run."""
    name = re.split(r"[\\/]", argv[0])[-1].lower()
    return name in ("cmd", "cmd.exe") and any(word.lower() in ("/c", "/k") for word in argv[1:-1])


def literal(text: str) -> str:
    """A PowerShell expression whose value is `text`.

    Single quotes protect everything but single quotes, and PowerShell accepts five kinds of those in Unicode. So
    text that is not printable ASCII is written as base64.
    """
    if all(" " <= letter <= "~" for letter in text):
        return "'" + text.replace("'", "''") + "'"
    data = base64.b64encode(text.encode()).decode()
    return f"([Text.Encoding]::UTF8.GetString([Convert]::FromBase64String('{data}')))"


def powershell(script: str) -> str:
    """A command line that runs a short PowerShell script; stdin is for the script.

    sshd passes it to cmd.exe or, if so configured, to PowerShell; nothing in it is special to either. stderr
    is joined to stdout outside PowerShell, so that both keep their bytes and their order. It must not be longer
    than 8191 characters, cmd.exe's limit.
    """
    whole = (
        "$ProgressPreference='SilentlyContinue';$ErrorActionPreference='Stop';"
        f"try{{{script};exit 0}}catch{{[Console]::Error.WriteLine($_);exit 1}}"
    )
    return f'cmd /D /S /C "{_POWERSHELL}{_encoded(whole)} 2>&1"'


def typed_powershell(script: str) -> str:
    """A command line that runs a short PowerShell script, then what is typed. cmd.exe's limit applies, too."""
    return _TYPED + _encoded(script)


def _encoded(script: str) -> str:
    return base64.b64encode(script.encode("utf-16-le")).decode()
