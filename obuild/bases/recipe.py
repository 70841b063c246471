"""How a base image is made: read one TOML file, check it all, digest what goes into the image.

extend = "micro"             # begin with this recipe: what is written here replaces what it says
kind = "debian"              # which module of obuild.bases makes it
suite = "bookworm"           # any name of a Debian release
updates = true               # false: from the release alone, without its suites of updates and of security fixes
variant = "minbase"          # how mmdebstrap begins; "extract" unpacks and configures nothing
size = "20G"                 # of the virtual disk
packages = ["openssh-server", "sudo"]
kernel = ["linux-image-amd64"]  # packages too, apart from the others so that another recipe can replace them
cmdline = "quiet"            # for the kernel, besides root= and the console
tools = ["cpio"]             # programs of the host that the script calls
script = '''...'''           # /bin/sh on the host; $1 is the new root, $2 its architecture, nothing is booted

[card]                       # what goes into the image's card, see obuild.card

[[file]]                     # put into the root before `script` runs
path = "/etc/motd"
mode = "644"
text = '''...'''
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from obuild.errors import UsageError
from obuild.guests import profile
from obuild.guests.profile import Card

#: The recipes that come with obuild: in a checkout at its root, in an installed copy inside the package.
FOLDERS = (
    Path(__file__).parent.parent.parent / "base-images",
    Path(__file__).parent.parent / "base-images",
)

KINDS = ("debian",)
VARIANTS = ("extract", "custom", "essential", "apt", "minbase", "required", "important", "standard")

#: The partition that is the root, as the guest's kernel names it.
ROOT = "/dev/vda1"

#: Room for the partition table, the boot loader, and a file system worth the name.
SMALLEST_DISK = 64 << 20

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9.+-]+")
_MODE = re.compile(r"[0-7]{3,4}")


@dataclass(frozen=True, slots=True)
class File:
    """A file to put into the guest, owned by root. `path` is absolute; `mode` are permission bits."""

    path: str
    mode: int
    text: str


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to make the base image `name`. `size` is in bytes and a multiple of 1 MiB."""

    name: str
    kind: str
    card: Card
    suite: str
    updates: bool
    variant: str
    size: int
    packages: tuple[str, ...]
    cmdline: str
    tools: tuple[str, ...]
    files: tuple[File, ...]
    script: str


def names() -> tuple[str, ...]:
    """Every recipe that comes with obuild, sorted."""
    return tuple(sorted({path.stem for folder in FOLDERS for path in folder.glob("*.toml")}))


def find(name: str) -> Path | None:
    """The file of the recipe called `name`, if obuild comes with it."""
    if not _NAME.fullmatch(name):
        return None
    candidates = (folder / f"{name}.toml" for folder in FOLDERS)
    return next((path for path in candidates if path.is_file()), None)


def digest(recipe: Recipe) -> str:
    """sha256 of all that the image is made from. The name does not count, nor does the day's package archive."""
    inputs = asdict(recipe)
    del inputs["name"]
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def load(path: Path) -> Recipe:
    """The recipe in `path`. UsageError naming file and entry for anything unknown, missing or malformed."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the recipe {path}: {error}") from error
    return parse(text, name=path.stem, where=str(path))


def parse(text: str, *, name: str, where: str) -> Recipe:
    """The recipe called `name` in `text`; `where` begins every message."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"{where}: {name!r} is not a name for a base image", hint="use a-z, 0-9, dot, dash")
    table = profile.toml(text, where=where)
    entries = _Entries(where, table)
    if "extend" in table:
        entries = _Entries(where, _extended(entries))
    entries.only(
        *("kind", "suite", "updates", "variant", "size", "packages", "kernel", "cmdline", "tools", "script"),
        *("card", "file"),
    )
    return Recipe(
        name=name,
        kind=entries.choice("kind", KINDS),
        card=_card(entries),
        suite=entries.match("suite", _NAME, hint='write it like "bookworm"'),
        updates=entries.flag("updates", default=True),
        variant=entries.choice("variant", VARIANTS, default="minbase"),
        size=_size(entries),
        packages=_packages(entries, "packages") + _packages(entries, "kernel"),
        cmdline=_one_line(entries, "cmdline"),
        tools=_packages(entries, "tools"),
        files=tuple(_file(where, number, item) for number, item in enumerate(entries.tables("file"), 1)),
        script=entries.text("script", default=""),
    )


def _extended(entries: _Entries) -> dict[str, Any]:
    """A table on top of the one that it extends: an entry replaces an entry, in [card] too; files are added."""
    name = entries.text("extend")
    path = find(name)
    if path is None:
        raise UsageError(f"{entries.where}: there is no recipe {name!r}", hint=f"known: {', '.join(names())}")
    below = _Entries(str(path), profile.toml(path.read_text(encoding="utf-8"), where=str(path)))
    above = {key: value for key, value in entries.values.items() if key != "extend"}
    return {
        **below.values,
        **above,
        "card": {**below.table("card"), **entries.table("card")},
        "file": [*below.tables("file"), *entries.tables("file")],
    }


def _card(entries: _Entries) -> Card:
    table = _Entries(f"{entries.where}: [card]", entries.table("card"))
    # The key belongs to the store an image is made in, so a recipe cannot name one.
    table.only("os", "arch", "login", "firmware", "memory")
    made = profile.from_strings({name: table.text(name) for name in table.values}, where=table.where)
    if made.firmware == "kernel":
        return replace(made, cmdline=f"root={ROOT} rw {_one_line(entries, 'cmdline')}".strip())
    return made


def _size(entries: _Entries) -> int:
    hint = "write it like 4G or 512M"
    try:
        size = profile.parse_size(entries.text("size"))
    except ValueError as error:
        raise UsageError(f"{entries.where}: size: {error}", hint=hint) from error
    if size < SMALLEST_DISK or size % (1 << 20):
        raise UsageError(f"{entries.where}: size must be whole MiB, and at least 64M", hint=hint)
    return size


def _packages(entries: _Entries, name: str) -> tuple[str, ...]:
    packages = entries.values.get(name, [])
    if not isinstance(packages, list):
        raise UsageError(f"{entries.where}: {name} must be a list", hint='write it like ["sudo", "tar"]')
    for package in packages:
        if not isinstance(package, str) or not _PACKAGE.fullmatch(package):
            raise UsageError(
                f"{entries.where}: {name}: {package!r} is not the name of a package",
                hint="names of Debian packages are lower case: a-z, 0-9, plus, dash, dot",
            )
    return tuple(packages)


def _one_line(entries: _Entries, name: str) -> str:
    text = entries.text(name, default="").strip()
    if not text.isprintable():
        raise UsageError(f"{entries.where}: {name} must be one line of printable text")
    return text


def _file(where: str, number: int, values: Mapping[str, Any]) -> File:
    entries = _Entries(f"{where}: [[file]] number {number}", values)
    entries.only("path", "mode", "text")
    path = entries.text("path")
    if not path.startswith("/") or path.endswith("/") or ".." in path.split("/"):
        raise UsageError(f"{entries.where}: path {path!r} is not a file's absolute path")
    mode = entries.match("mode", _MODE, hint='write it like "644" or "755"', default="644")
    return File(path, int(mode, 8), entries.text("text"))


@dataclass(frozen=True, slots=True)
class _Entries:
    """A TOML table and where it stands, so that every complaint can say so."""

    where: str
    values: Mapping[str, Any]

    def only(self, *known: str) -> None:
        for name in self.values:
            if name not in known:
                raise UsageError(f"{self.where}: unknown entry {name!r}", hint=f"it can have {', '.join(known)}")

    def text(self, name: str, *, default: str | None = None) -> str:
        value = self.values.get(name, default)
        if value is None:
            raise UsageError(f"{self.where}: {name} is missing", hint=f'add a line: {name} = "..."')
        if not isinstance(value, str):
            raise UsageError(f"{self.where}: {name} must be a string in quotes")
        return value

    def choice(self, name: str, allowed: tuple[str, ...], *, default: str | None = None) -> str:
        value = self.text(name, default=default)
        if value not in allowed:
            raise UsageError(f"{self.where}: {name} is {value!r}", hint=f"it can be {', '.join(allowed)}")
        return value

    def flag(self, name: str, *, default: bool) -> bool:
        value = self.values.get(name, default)
        if not isinstance(value, bool):
            raise UsageError(f"{self.where}: {name} must be true or false, without quotes")
        return value

    def match(self, name: str, pattern: re.Pattern[str], *, hint: str, default: str | None = None) -> str:
        value = self.text(name, default=default)
        if not pattern.fullmatch(value):
            raise UsageError(f"{self.where}: {name} is {value!r}", hint=hint)
        return value

    def table(self, name: str) -> Mapping[str, Any]:
        value = self.values.get(name, {})
        if not isinstance(value, dict):
            raise UsageError(f"{self.where}: {name} must be a table", hint=f"write it under a line [{name}]")
        return value

    def tables(self, name: str) -> list[Mapping[str, Any]]:
        value = self.values.get(name, [])
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise UsageError(f"{self.where}: {name} must be tables", hint=f"write each under a line [[{name}]]")
        return value
