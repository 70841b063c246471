"""What the kinds of recipes share: the recipe, what they get to make an image with, and the protocol `Kind`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from obuild.bases.remote import Remote
from obuild.bases.sources import Sources
from obuild.bases.table import Table
from obuild.guests.profile import Card
from obuild.host.process import CancelScope
from obuild.store.layers import Store

Say = Callable[[str], None]

_MODE = re.compile(r"[0-7]{3,4}")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to make the base image `name`. `size` is in bytes and a multiple of 1 MiB.

    `options` is the kind's own dataclass. `tried` says whether those who ship the recipe have made it. `table` is
    what was read, merged, and `files` is all that it was read from. `packages`, digests by NAME_VERSION_ARCH, and
    `archive`, where these were from, are from the lock file; they are not among the inputs in `digest`.
    """

    name: str
    kind: str
    size: int
    card: Card
    options: Any
    tried: bool
    path: Path
    table: Table
    files: tuple[Path, ...]
    packages: Mapping[str, str] = field(default_factory=dict)
    archive: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Installed:
    """What was installed: tables of the lock file, see `lockfile`. Two may be empty."""

    packages: Mapping[str, str]
    releases: Mapping[str, str] = field(default_factory=dict)
    archive: Mapping[str, str] = field(default_factory=dict)


def digest(recipe: Recipe) -> str:
    """Return the sha256 of all inputs, without the recipe's name and the state of the package archive."""
    inputs = [recipe.kind, recipe.size, _inputs(recipe.card), _inputs(recipe.options)]
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def _inputs(value: Any) -> Any:
    """Return what the digest covers of an option: of a download its digest, not its address."""
    if isinstance(value, Remote):
        return value.digest or list(value.urls)
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, tuple):
        return [_inputs(item) for item in value]
    if isinstance(value, Path):
        return None  # the content of a file counts, not its path
    if is_dataclass(value):
        # Options with their default values are left out, so a new option does not change any digest.
        told = {
            each.name: getattr(value, each.name) for each in fields(value) if each.metadata.get("digest", True)
        }
        usual = {each.name: each.default for each in fields(value)}
        return {name: _inputs(option) for name, option in told.items() if option != usual[name]}
    return value


@dataclass(frozen=True, slots=True)
class Making:
    """What a kind gets to make an image: the store, the login key, a function for messages, and one for downloads.

    `key` is the file of the private key. With `watch`, a guest's screen is shown by VNC.
    With `pins` "use", packages are those of the lock file; with "keep", all that pins them is kept in the store.
    `installed` is told what was installed, and raises UsageError if the lock file has other packages.
    """

    store: Store
    key: Path
    public_key: str
    say: Say
    fetch: Callable[[Remote], Path]
    scope: CancelScope = field(default_factory=CancelScope)
    watch: bool = False
    pins: Literal["", "keep", "use"] = ""
    installed: Callable[[Installed], None] = lambda found: None


class Kind(Protocol):
    """A module that makes base images of one kind."""

    def parse(self, table: Table, sources: Sources, card: Card) -> Any:
        """Read the kind's table into its options, a frozen dataclass. UsageError for a mistake."""
        ...

    def unpinned(self, recipe: Recipe) -> str:
        """Return which input has no digest, as a message; "" if all have one."""
        ...

    def seeds(self, recipe: Recipe, public_key: str, folder: Path) -> Sequence[Path]:
        """Write the media that tell the guest what to do into a folder, if it gets any that need no downloads."""
        ...

    def make(self, recipe: Recipe, out: Path, making: Making) -> Card:
        """Make the image at `out`, a qcow2 that the owner of `making.public_key` can log in to. Return its card.

        Files that belong to it go beside it, with other suffixes. `out` appears complete or not at all, and
        temporary files are removed in any case.
        """
        ...


@dataclass(frozen=True, slots=True)
class File:
    """A file to put into the guest, owned by root. `path` is absolute; `mode` are permission bits."""

    path: str
    mode: int
    text: str


def files(table: Table) -> tuple[File, ...]:
    """Read [[KIND.file]] of a kind's table."""
    return tuple(map(_file, table.tables("file")))


def _file(entry: Table) -> File:
    entry.only("path", "mode", "text")
    path = entry.text("path")
    if not path.startswith("/") or path.endswith("/") or ".." in path.split("/"):
        raise entry.error("path", f"path {path!r} is not the absolute path of a file")
    mode = entry.match("mode", _MODE, hint='write it like "644" or "755"', default="644")
    return File(path, int(mode, 8), entry.text("text"))
