r"""What a spec means on each OS: where a stage begins, what a path is, which users there are.

The defaults are those of OBuilder's manual (README, "Build specifications" and "user"). On Windows a path may
be written with either slash; `C:\…`, `C:/…` and `/…` are absolute, the last on the workdir's drive. Here they
are kept with forward slashes, so that the same place has one spelling, and one id.
"""

from __future__ import annotations

import itertools
import ntpath
import posixpath
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from obuild.errors import UsageError
from obuild.guests.profile import OSES, Card
from obuild.guests.windows_quoting import arguments, is_cmd
from obuild.spec import UnixUser, WindowsUser

#: The administrator of Windows containers; in a machine it is the user that SSH logs in as.
ADMINISTRATOR = WindowsUser("ContainerAdministrator")

#: The longest command lines that CreateProcess and cmd.exe take, in characters.
MAX_COMMAND_LINE, MAX_CMD_LINE = 32_767, 8_191

#: The longest single argument or variable that Linux takes (MAX_ARG_STRLEN, 32 pages, with its NUL).
MAX_ARGUMENT = 131_071

#: The most that execve(2) takes of arguments and variables together: ARG_MAX; in Linux a quarter of the stack.
MAX_ARGUMENTS = {"linux": 2 << 20, "freebsd": 512 << 10, "openbsd": 512 << 10}

#: What of that is left for obuild's own words and variables, which are in the same call.
RESERVED = 16 << 10

#: The longest variable that Windows takes, in characters.
MAX_VARIABLE = 32_766

#: Whose tar is not GNU's, and packs sparse files in the pax format only.
PAX = ("freebsd", "windows")

_TOO_LONG = "put it into a file or a script, and copy that in"


@dataclass(frozen=True, slots=True)
class Start:
    """What the ops of a stage find first."""

    workdir: str = "/"
    user: UnixUser | WindowsUser = UnixUser(0, 0)  # noqa: RUF009  # frozen
    shell: tuple[str, ...] = ("bash", "-c")


def start(os: str) -> Start:
    """Where a stage begins."""
    if os == "windows":
        return Start("C:/", ADMINISTRATOR, (r"C:\Windows\System32\cmd.exe", "/S", "/C"))
    return Start()


def slashes(os: str, path: str) -> str:
    """`path` with forward slashes, if the OS takes both kinds."""
    return path.replace("\\", "/") if os == "windows" else path


def join(os: str, workdir: str, path: str) -> str:
    """`path` seen from `workdir`, as the guest would walk it: `.` and doubled slashes go, `..` stays."""
    if os != "windows":
        return _tidy("/", posixpath.join(workdir, path))
    _check_utf8(path)
    drive, rest = ntpath.splitdrive(ntpath.join(workdir, path))
    if not re.fullmatch("[A-Za-z]:", drive) or rest[:1] not in ("/", "\\"):
        raise UsageError(f"{path!r} is no path that a step can use", hint=r"write it as C:\folder or C:/folder")
    return _tidy(f"{drive.upper()}/", slashes(os, rest))


def split(path: str) -> tuple[str, str]:
    """The folder and the name of a joined path; no name for a root."""
    folder, name = posixpath.split(path)
    return (f"{folder}/" if re.fullmatch("[A-Z]:", folder) else folder), name


def check_user(user: UnixUser | WindowsUser, card: Card) -> None:
    """UsageError unless the guest can have such a user."""
    guest = OSES[card.os]
    if isinstance(user, UnixUser):
        if card.os == "windows":
            raise UsageError(
                f"a Windows guest knows users by name, not by number {user.uid}",
                hint=f"(user (name {ADMINISTRATOR.name}))",
            )
        if not (0 <= user.uid < 2**32 - 1 and 0 <= user.gid < 2**32 - 1):
            raise UsageError("uid and gid must lie between 0 and 4294967294")
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
        raise UsageError(f"{user.name!r} cannot be the name of a user")


def check_variable(os: str, name: str, value: str) -> None:
    """UsageError if a variable is longer than any the guest takes."""
    if os != "windows":
        _check_length(os, f"{name}={value}", "the variable")
    elif len(name) + 1 + len(value) > MAX_VARIABLE:
        size = len(name) + 1 + len(value)
        raise UsageError(
            f"the variable is {size} characters long; Windows takes at most {MAX_VARIABLE}", hint=_TOO_LONG
        )


def check_command(os: str, argv: Sequence[str], env: Sequence[tuple[str, str]], texts: Iterable[str] = ()) -> None:
    """UsageError if the guest cannot run argv with `env`, or cannot be told one of the `texts`: its paths."""
    if os != "windows":
        _check_size(os, argv, env)
        return
    texts = (*texts, *itertools.chain(*env))
    _check_utf8(*argv, *texts)
    if re.search(r"\.(bat|cmd)$", argv[0], re.IGNORECASE):
        raise UsageError("a batch file cannot be a shell", hint="(shell cmd /S /C) runs batch files")
    size, limit = len(argv[0]) + 3 + len(arguments(argv)), MAX_COMMAND_LINE
    if is_cmd(argv):
        limit = MAX_CMD_LINE
        if "\n" in argv[-1]:
            raise UsageError(
                "cmd.exe reads the first line of a command only", hint="join lines with && and end them with \\"
            )
    if size > limit:
        raise UsageError(
            f"the command line is {size} characters long; {'cmd.exe' if limit == MAX_CMD_LINE else 'Windows'} "
            f"takes at most {limit}",
            hint="put it into a script, and copy that in",
        )


def _check_size(os: str, argv: Sequence[str], env: Sequence[tuple[str, str]]) -> None:
    """UsageError if these arguments and variables are more than the guest takes."""
    for word in argv:
        _check_length(os, word, "the command" if word is argv[-1] else "an argument")
    words = [*argv, *(f"{name}={value}" for name, value in env)]
    pointer = 8 if os == "linux" else 0  # to each, which Linux counts, too
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
    """UsageError if a build that runs `os` cannot be asked for these files."""
    for path in src:
        plain = slashes(os, path)
        if ".." in plain.split("/"):
            raise UsageError(f"copy source {path!r}: '..' is not allowed")
        if posixpath.basename(plain.rstrip("/")) in exclude:
            raise UsageError(f"copy source {path!r} is excluded, too")
        if os == "windows":
            _check_utf8(rename or "")
            if not split(join(os, "C:/", path))[1] and rename is not None:
                raise UsageError(
                    f"copy source {path!r} is a drive", hint="end dst with a slash: it has no name to change"
                )


def _check_utf8(*texts: str) -> None:
    if any("\ud800" <= letter <= "\udfff" for text in texts for letter in text):
        raise UsageError("a Windows guest takes text in UTF-8 only")


def _tidy(root: str, path: str) -> str:
    return root + "/".join(part for part in path.split("/") if part not in ("", "."))
