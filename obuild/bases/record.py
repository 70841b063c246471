"""The record NAME.made beside a base image: what it was made from. It shows whether the recipe has changed.

While the stamps of the recipe's files are the same, nothing is parsed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from obuild.errors import UsageError
from obuild.host import stamp
from obuild.host.regular import read_text
from obuild.store.base_images import MADE

if TYPE_CHECKING:
    from obuild.bases.kind import Recipe
    from obuild.bases.sources import Choices


@dataclass(frozen=True, slots=True)
class Record:
    """`digest` is that of all inputs, `when` is in seconds since the epoch, `inputs` are files and their stamps.

    `profile` and `values` are what the user chose, `toml` is the merged recipe.
    """

    kind: str
    recipe: str
    path: str
    digest: str
    when: float
    tried: bool
    profile: str
    values: dict[str, str]
    inputs: list[tuple[str, list[int]]]
    toml: str


def write(path: Path, recipe: Recipe, choices: Choices, *, when: float) -> None:
    """Write the record of the image in `path`."""
    from obuild.bases.kind import digest
    from obuild.host import toml

    record = Record(
        kind=recipe.kind,
        recipe=recipe.path.stem,
        path=str(recipe.path.resolve()),
        digest=digest(recipe),
        when=when,
        tried=recipe.tried,
        profile=choices.profile,
        values=dict(choices.values),
        inputs=[(str(file.resolve()), _stamp(file)) for file in dict.fromkeys(recipe.files)],
        toml=toml.dumps(recipe.table),
    )
    path.with_suffix(MADE).write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")


def read(image: Path) -> Record | None:
    """Return the record of a base image; None if the image was added, or if the record is damaged."""
    try:
        kept: dict[str, Any] = json.loads(read_text(image.with_suffix(MADE)))
        record = Record(**kept)
        known = Record.__dataclass_fields__
        kinds = {"str": str, "float": float, "bool": bool, "dict[str, str]": dict}
        sound = all(isinstance(kept[name], kinds.get(str(known[name].type), list)) for name in known)
        return record if sound and all(isinstance(value, str) for value in record.values.values()) else None
    except (OSError, ValueError, TypeError, RecursionError):
        return None


def changed(record: Record) -> str:
    """Return how the recipe has changed since the base was made, as a message; "" if it would make the same.

    A base without its recipe does not count as changed.
    """
    try:
        if all(_stamp(Path(file)) == stamp for file, stamp in record.inputs):
            return ""
    except (TypeError, ValueError):  # a damaged record
        pass
    from obuild.bases import recipe, sources
    from obuild.bases.kind import digest

    path = origin(record)
    if path is None:
        return ""
    try:
        now = recipe.load(path, sources.Choices(record.profile, record.values))
    except UsageError as error:
        return f"its recipe can no longer be read: {error.message}"
    return "" if digest(now) == record.digest else "its recipe, or a file that it names, has changed since"


def origin(record: Record) -> Path | None:
    """Return the recipe of a base: its file, or the recipe of that name that comes with obuild."""
    from obuild.bases import sources

    path = Path(record.path)
    return path if path.is_file() else sources.find(record.recipe)


def _stamp(path: Path) -> list[int]:
    """Return a stamp that changes with a file's content and mode, or a folder's names; empty if it is missing."""
    try:
        return [*stamp.of(path), path.stat().st_ctime_ns]
    except OSError:
        return []
