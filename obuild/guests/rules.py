r"""What a spec means on each OS: the initial state of a stage, paths, and users.

The defaults are those of OBuilder's manual (README, "Build specifications" and "user"). On Windows a path may
have either slash; `C:\…`, `C:/…` and `/…` are absolute, the last on the workdir's drive. Here they have forward
slashes, so that each place has one spelling, and one id.
"""

from __future__ import annotations

import itertools
import ntpath
import posixpath
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from obuild.errors import UsageError
from obuild.guests.profile import OSES, Card
from obuild.spec import UnixUser, WindowsUser

#: The administrator of Windows containers; in a machine it stands for the user that SSH logs in as.
ADMINISTRATOR = WindowsUser("ContainerAdministrator")

#: The longest command lines of CreateProcess and cmd.exe, in characters.
MAX_COMMAND_LINE, MAX_CMD_LINE = 32_767, 8_191

#: The longest argument or variable on Linux, in bytes (MAX_ARG_STRLEN, 32 pages, with its NUL).
MAX_ARGUMENT = 131_071

#: The limit of execve(2) for all arguments and variables, in bytes: ARG_MAX; on Linux a quarter of the stack.
MAX_ARGUMENTS = {"linux": 2 << 20, "freebsd": 512 << 10, "openbsd": 512 << 10}

#: The part of that which is reserved for obuild's own arguments and variables in the same call.
RESERVED = 16 << 10

#: The longest variable on Windows, in characters.
MAX_VARIABLE = 32_766

#: The systems whose tar is not GNU tar, and packs sparse files in the pax format only.
PAX = ("freebsd", "windows")

_TOO_LONG = "put it into a file or a script, and copy that in"


class Start(NamedTuple):
    """The state before the first op of a stage."""

    workdir: str = "/"
    user: UnixUser | WindowsUser = UnixUser(0, 0)  # frozen
    shell: tuple[str, ...] = ("bash", "-c")


def start(os: str) -> Start:
    """The initial state of a stage."""
    if os == "windows":
        return Start("C:/", ADMINISTRATOR, (r"C:\Windows\System32\cmd.exe", "/S", "/C"))
    return Start()


def slashes(os: str, path: str) -> str:
    """`path` with forward slashes, if the OS accepts both kinds."""
    return path.replace("\\", "/") if os == "windows" else path


def join(os: str, workdir: str, path: str) -> str:
    """`path` relative to `workdir`, as the guest resolves it: `.` and doubled slashes are removed, `..` stays."""
    if os != "windows":
        return _tidy("/", posixpath.join(workdir, path))
    _check_utf8(path)
    drive, rest = ntpath.splitdrive(ntpath.join(workdir, path))
    if not re.fullmatch("[A-Za-z]:", drive) or rest[:1] not in ("/", "\\"):
        raise UsageError(f"a step cannot use the path {path!r}", hint=r"write it as C:\folder or C:/folder")
    return _tidy(f"{drive.upper()}/", slashes(os, rest))


def split(path: str) -> tuple[str, str]:
    """The folder and the name of a joined path; the name is "" for a root."""
    folder, name = posixpath.split(path)
    return (f"{folder}/" if re.fullmatch("[A-Z]:", folder) else folder), name


def check_user(user: UnixUser | WindowsUser, card: Card) -> None:
    """UsageError if the guest cannot have such a user."""
    guest = OSES[card.os]
    if isinstance(user, UnixUser):
        if card.os == "windows":
            raise UsageError(
                f"a Windows guest knows users by name, not by number {user.uid}",
                hint=f"(user (name {ADMINISTRATOR.name}))",
            )
        if not (0 <= user.uid < 2**32 - 1 and 0 <= user.gid < 2**32 - 1):
            raise UsageError("uid and gid must be between 0 and 4294967294")
    elif card.os in ("linux", "openbsd"):
        article = "a" if card.os == "linux" else "an"
        raise UsageError(
            f"{article} {guest} guest knows users by number, not {user.name!r}",
            hint="(user (uid 1000) (gid 1000))",
        )
    elif card.os == "windows" and user.name.lower() not in (ADMINISTRATOR.name.lower(), card.login.lower()):
        raise UsageError(
            f"steps of a Windows guest run as {card.login!r}, its login; {user.name!r} would need a password",
            hint=f"(user (name {ADMINISTRATOR.name})) is that user",
        )
    elif not user.name or user.name[0] in "-0123456789" or "\0" in user.name:
        raise UsageError(f"{user.name!r} is not a valid user name")


def check_variable(os: str, name: str, value: str) -> None:
    """UsageError if a variable is too long for the guest."""
    if os != "windows":
        _check_length(os, f"{name}={value}", "the variable")
    elif len(name) + 1 + len(value) > MAX_VARIABLE:
        size = len(name) + 1 + len(value)
        raise UsageError(
            f"the variable is {size} characters long; Windows takes at most {MAX_VARIABLE}", hint=_TOO_LONG
        )


def check_command(os: str, argv: Sequence[str], env: Sequence[tuple[str, str]], texts: Iterable[str] = ()) -> None:
    """UsageError if the guest cannot run argv with `env`, or cannot be given one of `texts`, the paths."""
    if os != "windows":
        _check_size(os, argv, env)
        return
    from obuild.guests.windows_quoting import arguments, is_cmd  # late: few specs are for Windows

    texts = (*texts, *itertools.chain(*env))
    _check_utf8(*argv, *texts)
    if re.search(r"\.(bat|cmd)$", argv[0], re.IGNORECASE):
        raise UsageError("a batch file cannot be a shell", hint="(shell cmd /S /C) runs batch files")
    size, limit = len(argv[0]) + 3 + len(arguments(argv)), MAX_COMMAND_LINE
    if is_cmd(argv):
        limit = MAX_CMD_LINE
        if "\n" in argv[-1]:
            raise UsageError(
                "cmd.exe reads only the first line of a command", hint="join lines with && and end them with \\"
            )
    if size > limit:
        raise UsageError(
            f"the command line is {size} characters long; {'cmd.exe' if limit == MAX_CMD_LINE else 'Windows'} "
            f"takes at most {limit}",
            hint="put it into a script, and copy that in",
        )


def _check_size(os: str, argv: Sequence[str], env: Sequence[tuple[str, str]]) -> None:
    """UsageError if the arguments and variables are too large for the guest."""
    for word in argv:
        _check_length(os, word, "the command" if word is argv[-1] else "an argument")
    words = [*argv, *(f"{name}={value}" for name, value in env)]
    pointer = 8 if os == "linux" else 0  # Linux also counts the pointer to each
    size = sum(len(_encoded(word)) + 1 + pointer for word in words)
    if size > _most(os):
        what = f"the command and its variables are {size} bytes long together"
        raise UsageError(f"{what}; {OSES[os]} takes at most {_most(os)}", hint=_TOO_LONG)


def _check_length(os: str, text: str, what: str) -> None:
    size, limit = len(_encoded(text)), MAX_ARGUMENT if os == "linux" else _most(os)
    if size > limit:
        raise UsageError(f"{what} is {size} bytes long; {OSES[os]} takes at most {limit}", hint=_TOO_LONG)


def _most(os: str) -> int:
    return MAX_ARGUMENTS[os] - RESERVED


def _encoded(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


def check_sources(os: str, src: Iterable[str], exclude: Iterable[str], rename: str | None) -> None:
    """UsageError if a copy cannot take these files from a build on `os`."""
    for path in src:
        plain = slashes(os, path)
        if ".." in plain.split("/"):
            raise UsageError(f"copy source {path!r}: '..' is not allowed")
        if posixpath.basename(plain.rstrip("/")) in exclude:
            raise UsageError(f"copy source {path!r} is also excluded")
        if os == "windows":
            _check_utf8(rename or "")
            if not split(join(os, "C:/", path))[1] and rename is not None:
                raise UsageError(
                    f"copy source {path!r} is a drive", hint="end dst with a slash: a drive has no name to change"
                )


def _check_utf8(*texts: str) -> None:
    if any("\ud800" <= letter <= "\udfff" for text in texts for letter in text):
        raise UsageError("a Windows guest accepts only UTF-8 text")


def _tidy(root: str, path: str) -> str:
    return root + "/".join(part for part in path.split("/") if part not in ("", "."))
