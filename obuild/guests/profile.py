"""The card of a base image: NAME.toml beside NAME.qcow2, with what is needed to boot it and log in.

os = "linux"                 # linux, windows, openbsd, freebsd
arch = "x86_64"
login = "root"               # the user that SSH logs in as
firmware = "bios"            # bios: the machine's own firmware boots the disk; uefi: UEFI does, with the variables
                             # in NAME.nvram, if there is one; kernel: QEMU loads NAME.vmlinuz
cmdline = "root=/dev/vda1"   # for that kernel, without its console; NAME.initrd is its initial RAM disk
memory = "256M"              # the least it boots with
warm = "yes"                 # no: machines are never saved and resumed; each step boots one
key = "state/ssh/id_ed25519" # optional: private key, relative to the store or absolute
authorized_keys = "1052672"  # optional: byte offset of a block of the disk that a store fills with its login key
host_key = "1056768"         # the same, for the host key of its guests
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from obuild.errors import UsageError
from obuild.host import toml
from obuild.host.regular import read_text

#: The guest systems, and their names for people. `guests.all` has their modules.
OSES = {"linux": "Linux", "windows": "Windows", "openbsd": "OpenBSD", "freebsd": "FreeBSD"}
#: The architectures of guests. `executors.qemu.arches` says how QEMU runs them.
ARCHES = ("x86_64", "aarch64", "riscv64", "s390x", "ppc64le")
#: Debian's names of architectures, where they differ; users may use them, too.
DEBIAN_ARCHES = {"x86_64": "amd64", "aarch64": "arm64", "ppc64le": "ppc64el"}
ARCH_ALIASES = {debian: arch for arch, debian in DEBIAN_ARCHES.items()}

FIRMWARES = ("bios", "uefi", "kernel")

#: The file in a base's layer that holds its card.
NAME = "card.toml"

#: The suffixes of the files beside the image for firmware "kernel". The first is required.
KERNEL, INITRD = ".vmlinuz", ".initrd"

#: The suffix of the file with UEFI's variables, such as what to boot. Without it they are the defaults.
NVRAM = ".nvram"

#: The largest memory of any machine, in bytes: addresses have 52 bits at most.
MOST_MEMORY = 1 << 52

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)([KMGT]?)(?:i?B)?", re.IGNORECASE | re.ASCII)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True, slots=True)
class Card:
    """The properties of a base image. `memory` is in bytes."""

    os: str = "linux"
    arch: str = "x86_64"
    login: str = "root"
    firmware: str = "bios"
    memory: int = 256 << 20
    key: str = ""
    cmdline: str = ""
    warm: str = "yes"
    authorized_keys: int = 0
    host_key: int = 0


def arch_named(name: str) -> str:
    """The canonical name of an architecture. UsageError if it is unknown."""
    canonical = ARCH_ALIASES.get(name, name)
    if canonical not in ARCHES:
        raise UsageError(f"unknown guest architecture {name!r}", hint=f"known: {', '.join(ARCHES)}")
    return canonical


def parse_size(text: str, *, default_unit: str = "") -> int:
    """`512M`, `2G`, `1.5G` in bytes; a bare number is in `default_unit`. ValueError for anything else."""
    match = _SIZE.fullmatch(text.strip())
    if not match or len(match[1]) > 20:
        raise ValueError(f"{text!r} is not a size")
    return int(float(match[1]) * _UNITS[match[2].upper() or default_unit])


def read(path: Path) -> Card:
    """The card in `path`, or the default card if there is no such file. UsageError if it is malformed."""
    try:
        text = read_text(path, follow=True)
        return parse(text.removeprefix("\ufeff"), where=str(path))  # an editor may have added a byte order mark
    except FileNotFoundError:
        return Card()
    except OSError as error:
        raise UsageError(f"cannot read the card {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"cannot read the card {path}: {error}") from error


def parse(text: str, *, where: str) -> Card:
    """The card in `text`; `where` names it in messages. UsageError for anything unknown."""
    table = toml.loads(text, where=where)
    known = {field.name for field in fields(Card)}
    for name, value in table.items():
        if name not in known:
            raise UsageError(f"{where}: unknown entry {name!r}", hint=f"a card has {', '.join(sorted(known))}")
        if not isinstance(value, str):
            raise UsageError(f"{where}: {name} must be a string in quotes")
    return from_strings(table, where=where)


def from_strings(table: dict[str, str], *, where: str) -> Card:
    """A checked card from its fields as text."""
    for name, allowed in (("os", OSES), ("arch", ARCHES), ("firmware", FIRMWARES), ("warm", ("yes", "no"))):
        if name in table and table[name] not in allowed:
            raise UsageError(f"{where}: {name} is {table[name]!r}", hint=f"it can be {', '.join(allowed)}")
    if not re.fullmatch(r"[A-Za-z0-9_.][A-Za-z0-9_. -]*", table.get("login", "root")):
        raise UsageError(f"{where}: {table['login']!r} is not a login name")
    if not table.get("cmdline", "").isprintable():
        raise UsageError(f"{where}: cmdline must be one line of printable text")
    values: dict[str, Any] = dict(table)
    if "memory" in table:
        try:
            values["memory"] = parse_size(table["memory"])
        except ValueError as error:
            raise UsageError(f"{where}: memory: {error}", hint="write it like 256M or 2G") from error
        if values["memory"] > MOST_MEMORY:
            raise UsageError(f"{where}: memory: no machine can have {table['memory']}", hint="write it like 2G")
    for name in ("authorized_keys", "host_key"):
        if name in table:
            if not re.fullmatch(r"[0-9]{1,15}", table[name], re.ASCII) or int(table[name]) % 512:
                raise UsageError(
                    f"{where}: {name} is {table[name]!r}", hint="it must be the offset of a sector in bytes"
                )
            values[name] = int(table[name])
    return Card(**values)


def dump(card: Card) -> str:
    """The card as text that `parse` reads back."""
    lines = [f"{name} = {toml.quoted(getattr(card, name))}" for name in ("os", "arch", "login", "firmware")]
    lines.append(f'memory = "{card.memory >> 10}K"')
    lines += [f"{name} = {toml.quoted(value)}" for name in ("key", "cmdline") if (value := getattr(card, name))]
    lines += [f'{name} = "{value}"' for name in ("authorized_keys", "host_key") if (value := getattr(card, name))]
    if card.warm != "yes":
        lines.append(f'warm = "{card.warm}"')
    return "\n".join(lines) + "\n"
