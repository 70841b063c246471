"""What [scratch] in a recipe says."""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass, field
from typing import Literal

from obuild.bases import kind
from obuild.bases.kind import File
from obuild.bases.scratch import layouts, root_files
from obuild.bases.sources import Sources
from obuild.bases.table import Table
from obuild.guests.profile import Card
from obuild.plan.tree import Tree

VARIANTS = ("extract", "custom", "essential", "apt", "minbase", "required", "important", "standard")

#: sshd's second file of keys for root; a store's login key is in the first.
ROOT_KEYS = "/root/.ssh/authorized_keys2"

#: The last second that an inode of our ext4 can say.
_LAST_SECOND = (1 << 31) - 1

_MIRROR = re.compile(r"|(?:https?|file)://[^\s\[\]]+")
_SUITE = re.compile(r"[a-z0-9][a-z0-9._-]*")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9.+-]+")


@dataclass(frozen=True, slots=True)
class Options:
    """What [scratch] says.

    `layout` is a row of `layouts`.
    `suite` is any name of a Debian release; without `updates` the suites of updates and of security fixes are left
    out. `variant` is how mmdebstrap begins: "extract" unpacks and configures nothing. `packages` end with those of
    the kernel and of the layout. `cmdline` is for it, besides root= and the console. `script` is run by /bin/sh
    on the host, calls `tools`, and gets the new root as $1, with `trees` and `files` in it, and its architecture
    as $2. With `presets`, systemd's presets have decided before it what starts at boot. What matches one of
    `remove` is removed at last. `epoch` is the image's date: in seconds, or that of its newest package or of the
    release. `mirror` is where packages are taken from.
    """

    layout: str
    suite: str
    updates: bool
    variant: str
    packages: tuple[str, ...]
    cmdline: str
    tools: tuple[str, ...]
    files: tuple[File, ...]
    script: str
    trees: tuple[Tree, ...] = ()
    presets: bool = False
    remove: tuple[str, ...] = ()
    epoch: int | Literal["packages", "release"] = "packages"
    mirror: str = field(default="", metadata={"digest": False})


def parse(table: Table, sources: Sources, card: Card) -> Options:
    """See `Kind.parse`."""
    table.only(
        *("layout", "suite", "updates", "variant", "packages", "kernel", "cmdline", "tools", "file", "script"),
        *("tree", "presets", "remove", "epoch", "mirror", "authorized_keys"),
    )
    layout = table.choice("layout", layouts.LAYOUTS, default="mbr-grub")
    firmwares = layouts.LAYOUTS[layout].FIRMWARES
    if card.firmware not in firmwares:
        raise table.error(
            "layout",
            f"layout {layout!r} is not for firmware = {card.firmware!r}",
            hint=f'write firmware = "{firmwares[0]}" under [card], or {_layouts_for(card.firmware)}',
        )
    return Options(
        layout=layout,
        suite=table.match("suite", _SUITE, hint='write it like "bookworm"'),
        updates=table.flag("updates", default=True),
        variant=table.choice("variant", VARIANTS, default="minbase"),
        packages=_packages(table, "packages") + _packages(table, "kernel") + layouts.LAYOUTS[layout].PACKAGES,
        cmdline=table.line("cmdline"),
        tools=_packages(table, "tools"),
        files=(files := kind.files(table) + _authorized_keys(table, sources)),
        script=table.text("script", default=""),
        trees=root_files.trees(table, sources, files),
        presets=table.flag("presets", default=False),
        remove=root_files.globs(table),
        epoch=_epoch(table),
        mirror=table.match("mirror", _MIRROR, hint='write it like "http://deb.debian.org/debian"', default=""),
    )


def _epoch(table: Table) -> int | Literal["packages", "release"]:
    match table.get("epoch", "packages"):
        case "packages":
            return "packages"
        case "release":
            return "release"
        case int(seconds) if not isinstance(seconds, bool) and 0 < seconds <= _LAST_SECOND:
            return seconds
    hint = 'write "packages", "release", or seconds since 1970 without quotes'
    raise table.error("epoch", f"epoch is {table['epoch']!r}", hint=hint)


def _authorized_keys(table: Table, sources: Sources) -> tuple[File, ...]:
    """Return root's SSH keys from a file, beside those that a store gives to the login; nothing if none is named.

    UsageError unless only its owner can read it, and nobody can write it: what is in it opens every machine.
    """
    if not table.text("authorized_keys", default=""):
        return ()
    path = sources.beside(table, "authorized_keys")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode != 0o400:
        problem = f"authorized_keys: {path} has mode {mode:04o}, and must have 0400"
        raise table.error("authorized_keys", problem, hint=f"see what is in it, then: chmod 400 {path}")
    return (File(ROOT_KEYS, 0o600, sources.text(table, "authorized_keys")),)


def _layouts_for(firmware: str) -> str:
    fitting = [f'"{name}"' for name, layout in layouts.LAYOUTS.items() if firmware in layout.FIRMWARES]
    return f"layout = {' or '.join(fitting)}"


def _packages(table: Table, key: str) -> tuple[str, ...]:
    for package in (packages := table.strings(key)):
        if not _PACKAGE.fullmatch(package):
            raise table.error(
                key,
                f"{key}: {package!r} is not the name of a package",
                hint="names of Debian packages are lower case: a-z, 0-9, plus, dash, dot",
            )
    return packages
