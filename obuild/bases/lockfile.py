"""NAME.lock beside a recipe: the digests of downloads that the recipe itself does not know."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from obuild.errors import UsageError, words
from obuild.host import toml
from obuild.host.fs import replace_text

DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")

_HEAD = "# What --trust-first has taken: each address with its digest. Delete a line to take another file.\n"


def path_of(recipe: Path) -> Path:
    """Where the lock file of a recipe is."""
    return recipe.with_suffix(".lock")


def read(path: Path) -> dict[str, str]:
    """Digests by URL; none if there is no such file. UsageError if it is damaged."""
    try:
        table = toml.loads(path.read_text(encoding="utf-8"), where=str(path))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {words(error)}") from error
    digests = table.get("digests", {})
    if not isinstance(digests, dict) or table.keys() - {"digests"}:
        raise UsageError(f"{path}: it must have one table, [digests]")
    for url, digest in digests.items():
        if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
            raise UsageError(f"{path}: {digest!r} is not a digest", hint=f"delete the line of {url}")
    return digests


def write(path: Path, digests: Mapping[str, str]) -> None:
    """Replace the lock file. UsageError if that is not allowed."""
    try:
        replace_text(path, _HEAD + toml.dumps({"digests": dict(sorted(digests.items()))}))
    except OSError as error:
        hint = "copy the recipe to a folder of yours, or write the digest into it"
        raise UsageError(f"cannot write {path}: {words(error)}", hint=hint) from error
