"""Read and check a recipe. docs/recipes.md describes the language."""

from __future__ import annotations

from pathlib import Path

from obuild.bases import sources
from obuild.bases.all import KINDS
from obuild.bases.kind import Recipe
from obuild.bases.sources import Choices
from obuild.bases.table import Table
from obuild.errors import UsageError
from obuild.guests import profile
from obuild.guests.profile import Card
from obuild.host import toml

#: Room for a partition table, a boot loader and a useful file system, in bytes.
SMALLEST_DISK = 64 << 20

_COMMON = ("kind", "arch", "size", "tried", "card")


def load(path: Path, choices: Choices | None = None, *, name: str = "") -> Recipe:
    """Read the recipe in `path`, called `name` or like its file. UsageError, with the place, for a mistake."""
    if not sources.NAME.fullmatch(path.stem):
        raise UsageError(f"{path}: {path.stem!r} is not a name for a recipe", hint="use a-z, 0-9, dot, dash")
    read = sources.read(path, choices or Choices())
    table = read.table
    kind = table.choice("kind", KINDS)
    for other in KINDS:
        if other in table and other != kind:
            raise table.error(
                other, f"a recipe has one kind: this one is {kind}, so it cannot have a table [{other}]"
            )
    table.only(*_COMMON, kind)
    card = _card(table)
    return Recipe(
        name=name or path.stem,
        kind=kind,
        size=table.size("size", smallest=SMALLEST_DISK),
        card=card,
        options=KINDS[kind].parse(table.table(kind), read, card),
        tried=table.flag("tried", default=True),
        path=path,
        table=table,
        files=tuple(read.files),
        packages=read.packages,
        archive=read.archive,
    )


def show(recipe: Recipe) -> str:
    """Return the merged recipe as TOML."""
    return toml.dumps(recipe.table)


def _card(table: Table) -> Card:
    entries = table.table("card")
    # `key` is missing: the login key is that of the store.
    entries.only("os", "login", "firmware", "memory", "warm")
    fields = {key: entries.text(key) for key in entries}
    arch = table.choice("arch", (*profile.ARCHES, *profile.ARCH_ALIASES), default="x86_64")
    fields["arch"] = profile.arch_named(arch)
    return profile.from_strings(fields, where=entries.where)
