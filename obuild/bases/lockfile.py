"""NAME.lock beside a recipe: the inputs that the recipe itself does not pin.

[digests]   of downloads, by address
[packages]  their digests, by NAME_VERSION_ARCH
[releases]  the digest of the signed file of each suite that these were from
[archive]   date: of the newest of these files; index: the digest of what they said of the packages, which the
            store keeps; mirror: if the recipe named one
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from obuild.errors import UsageError, words
from obuild.host import locks, toml
from obuild.host.fs import replace_text

DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")

_HEAD = "# What was used: addresses and packages, each with its digest. Delete a line to accept another file.\n"

TABLES = ("digests", "packages", "releases", "archive")

_ARCHIVE = {
    "date": re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}Z"),
    "index": DIGEST,
    "mirror": re.compile(r"\S+"),
}


def path_of(recipe: Path) -> Path:
    """Where the lock file of a recipe is."""
    return recipe.with_suffix(".lock")


def read(path: Path, table: str = "digests") -> dict[str, str]:
    """One of TABLES.

    It is empty if there is no such file. UsageError if the file is damaged.
    """
    return _tables(path)[table]


def write(path: Path, digests: Mapping[str, str]) -> None:
    """Replace the digests of downloads. UsageError if that is not allowed."""
    write_tables(path, {"digests": digests})


def write_tables(path: Path, new: Mapping[str, Mapping[str, str]]) -> None:
    """Replace some of TABLES. UsageError if that is not allowed."""
    tables = _tables(path) | {name: dict(sorted(entries.items())) for name, entries in new.items()}
    try:
        text = _HEAD + toml.dumps({name: entries for name, entries in tables.items() if entries})
        with locks.folder_lock(path.parent):
            for left in path.parent.glob(f".{path.name}.*"):  # left by a killed process
                left.unlink()
            replace_text(path, text, point="make.locking")
    except OSError as error:
        hint = "copy the recipe to a folder of yours, or write the digest into it"
        raise UsageError(f"cannot write {path}: {words(error)}", hint=hint) from error


def differences(locked: Mapping[str, str], found: Mapping[str, str]) -> str:
    """What of `found` is not as it is locked, in words; "" if all is."""
    new = [f"{name} is not in it" for name in sorted(found.keys() - locked.keys())]
    gone = [f"{name} is missing" for name in sorted(locked.keys() - found.keys())]
    both = sorted(found.keys() & locked.keys())
    other = [f"{name} has another digest" for name in both if found[name] != locked[name]]
    told = [*other, *new, *gone]
    return ", ".join(told[:4]) + (f", and {len(told) - 4} more" if len(told) > 4 else "")


def check(path: Path, locked: Mapping[str, str], found: Mapping[str, str]) -> None:
    """UsageError, naming the first, if packages are not those that the lock file has."""
    if what := differences(locked, found):
        raise UsageError(
            f"the packages are not those of {path}: {what}",
            hint="the recipe may ask for others than when it was locked: obuild base make --lock accepts that",
        )


def _tables(path: Path) -> dict[str, dict[str, str]]:
    try:
        found = toml.loads(path.read_text(encoding="utf-8"), where=str(path))
    except FileNotFoundError:
        found = {}
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {words(error)}") from error
    if found.keys() - set(TABLES) or not all(isinstance(entries, dict) for entries in found.values()):
        raise UsageError(f"{path}: it must have these tables only: {', '.join(TABLES)}")
    for table, entries in found.items():
        for name, digest in entries.items():
            pattern = _ARCHIVE.get(name) if table == "archive" else DIGEST
            if pattern is None or not isinstance(digest, str) or not pattern.fullmatch(digest):
                raise UsageError(f"{path}: {name} cannot be {digest!r}", hint=f"delete the line of {name}")
    return {name: found.get(name, {}) for name in TABLES}
