"""How words travel through Windows, where a command line is one string that each program takes apart itself.

Sources: "Parsing C command-line arguments" (Microsoft C runtime; CommandLineToArgvW reads the same way);
`cmd /?` for /S; about_Quoting_Rules and about_PowerShell_exe for PowerShell.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence

#: Cygwin's programs glob what is not in quotes, so only what no reader of a command line minds goes without.
_PLAIN = re.compile(r"[A-Za-z0-9_./:\\+=,-]*[A-Za-z0-9_./:+=,-]")

#: One PowerShell, the one that every Windows has. No profile is read, nothing asked, and no script policy
#: holds; text, for an encoded command's errors would else be XML.
_POWERSHELL = "powershell -NoProfile -NonInteractive -ExecutionPolicy Bypass -OutputFormat Text -EncodedCommand "
_TYPED = "powershell -NoLogo -NoProfile -NoExit -ExecutionPolicy Bypass -OutputFormat Text -EncodedCommand "


def argument(word: str) -> str:
    """A word as CommandLineToArgvW reads it back.

    A backslash is itself, unless a double quote follows the run of backslashes that it is in: then two stand
    for one, and one more makes the quote an ordinary letter.
    """
    if _PLAIN.fullmatch(word):
        return word
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', word)
    return '"' + re.sub(r"(\\+)\Z", r"\1\1", escaped) + '"'


def arguments(argv: Sequence[str]) -> str:
    """The command line after its first word, the program.

    cmd.exe is a reader of its own: with /S it takes away the first and the last double quote after /C and
    leaves everything between them as it was typed, which is what a spec's command means. Without /S it
    would sometimes, so /S is added.
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
    """Whether this is cmd.exe with a command to run."""
    name = re.split(r"[\\/]", argv[0])[-1].lower()
    return name in ("cmd", "cmd.exe") and any(word.lower() in ("/c", "/k") for word in argv[1:-1])


def literal(text: str) -> str:
    """A PowerShell expression whose value is `text`.

    Its single quotes protect everything but single quotes, of which it knows five in Unicode: so what is
    not printable ASCII travels as base64.
    """
    if all(" " <= letter <= "~" for letter in text):
        return "'" + text.replace("'", "''") + "'"
    data = base64.b64encode(text.encode()).decode()
    return f"([Text.Encoding]::UTF8.GetString([Convert]::FromBase64String('{data}')))"


def powershell(script: str) -> str:
    """A command line that runs a short PowerShell script, whose stdin is the script's to read.

    sshd hands it to cmd.exe or, where so configured, to PowerShell; nothing in it means anything special to
    either. stderr joins stdout here, outside PowerShell, so that both stay the bytes they are, in order. It
    must not be longer than 8191 characters, cmd.exe's limit.
    """
    whole = (
        "$ProgressPreference='SilentlyContinue';$ErrorActionPreference='Stop';"
        f"try{{{script};exit 0}}catch{{[Console]::Error.WriteLine($_);exit 1}}"
    )
    return f'cmd /D /S /C "{_POWERSHELL}{_encoded(whole)} 2>&1"'


def typed_powershell(script: str) -> str:
    """A command line that runs a short PowerShell script, and then what is typed. Its limit is cmd.exe's, too."""
    return _TYPED + _encoded(script)


def _encoded(script: str) -> str:
    return base64.b64encode(script.encode("utf-16-le")).decode()
