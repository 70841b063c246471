"""Read the files of a recipe and merge them into one table.

They are merged in this order, and later ones win: the extended recipe with its drop-ins, the recipe itself, its
drop-ins NAME.d/*.toml sorted by name, the profile. Variables are replaced last. `extend` replaces lists; drop-ins
and profiles add to them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from obuild.bases import lockfile
from obuild.bases.table import Source, Table, merged, nearest, placed
from obuild.errors import UsageError, words
from obuild.host import toml
from obuild.host.regular import read_text

#: Where obuild's own recipes are: at the root of a checkout, or inside an installed package.
FOLDERS = (
    Path(__file__).parent.parent.parent / "base-images",
    Path(__file__).parent.parent / "base-images",
)

NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")

#: The common keys that a profile may have; all its other keys belong to the table of the kind.
_COMMON = ("card", "size")

#: The types of variables.
Variable = str | int | bool

_VARIABLE = re.compile(r"@([A-Za-z][A-Za-z0-9_]*)@")


@dataclass(frozen=True, slots=True)
class Choices:
    """What the user chose: a profile, or "", and values of variables as text."""

    profile: str = ""
    values: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sources:
    """The merged table, the variables' values, and all files that were looked for, even missing ones.

    From the recipe's lock file are `locked`, the digests of downloads by URL, `packages`, those of packages, and
    `archive`, where these were from.
    """

    table: Table
    variables: Mapping[str, Variable]
    files: list[Path]
    locked: Mapping[str, str]
    packages: Mapping[str, str] = field(default_factory=dict)
    archive: Mapping[str, str] = field(default_factory=dict)

    def beside(self, table: Table, key: str) -> Path:
        """Return the file that a key names, relative to the file with the key. UsageError if it is missing."""
        path = table.origin[key][0].folder / table.text(key)
        self.files.append(path)
        if not path.is_file():
            raise table.error(key, f"{key}: there is no file {path}")
        return path

    def folders(self, table: Table, key: str) -> tuple[Path, ...]:
        """Return the folders that a key names, one or a list, each relative to the file that names it.

        UsageError if one is missing.
        """
        named = (table.text(key),) if isinstance(table.get(key), str) else table.strings(key)
        paths = [source.folder / name for source, name in zip(table.written_in(key), named, strict=True)]
        for path in paths:
            self.files.append(path)
            if not path.is_dir():
                raise table.error(key, f"{key}: there is no folder {path}")
        return tuple(paths)

    def text(self, table: Table, key: str) -> str:
        """Return the text of such a file, with variables replaced. UsageError if it is not text."""
        path = self.beside(table, key)
        try:
            return substitute(read_text(path, follow=True), self.variables)
        except (OSError, UnicodeDecodeError) as error:
            raise table.error(key, f"cannot read {path}: {words(error)}") from error
        except KeyError as error:
            raise _unknown(table, key, str(error.args[0]), self.variables) from None


def names() -> tuple[str, ...]:
    """Return the names of obuild's own recipes, sorted."""
    return tuple(sorted({path.stem for folder in FOLDERS for path in folder.glob("*.toml")}))


def find(name: str) -> Path | None:
    """Return the file of obuild's own recipe `name`, if there is one. UsageError for drop-ins without a recipe."""
    return _find(name, FOLDERS)


def _find(name: str, folders: tuple[Path, ...]) -> Path | None:
    if not NAME.fullmatch(name):
        return None
    candidates = (folder / f"{name}.toml" for folder in folders)
    found = next((path for path in candidates if path.is_file()), None)
    for folder in folders:
        if found is None and (folder / f"{name}.d").is_dir():
            raise UsageError(
                f"{folder / name}.d has drop-ins for a recipe {name!r} that does not exist",
                hint=f"write {folder / name}.toml; known: {', '.join(names())}",
            )
    return found


def read(path: Path, choices: Choices) -> Sources:
    """Read the recipe in `path` and everything that belongs to it, with the chosen profile and variables.

    UsageError for a file that cannot be read, a cycle of `extend`, an unknown profile, and a variable that is not
    declared or whose value has the wrong type.
    """
    files: list[Path] = []
    table = _with_profile(_extended(path, files, ()), choices.profile)
    variables = _variables(table, choices.values)
    table.pop("vars", None)
    lock = lockfile.path_of(path)
    files.append(lock)
    digests, packages, archive = (lockfile.read(lock, name) for name in ("digests", "packages", "archive"))
    return Sources(_substituted(table, variables), variables, files, digests, packages, archive)


def _extended(path: Path, files: list[Path], above: tuple[Path, ...]) -> Table:
    """Return a recipe merged onto those that it extends, with the drop-ins of each."""
    table = _read(path, files)
    if "extend" in table:
        name = table.text("extend")
        below = _find(name, (path.parent, *FOLDERS))
        if below is None:
            raise table.error("extend", f"there is no recipe {name!r}", hint=nearest(name, names()))
        chain = (*above, path.resolve())
        if below.resolve() in chain:
            way = " extends ".join(each.stem for each in (*chain, below))
            raise table.error("extend", f"a recipe cannot extend itself: {way}")
        table = merged(_extended(below, files, chain), table, add=False)
        del table["extend"]
    folder = path.with_suffix(".d")
    files.append(folder)  # its mtime changes when a drop-in is added or removed
    for drop_in in sorted(folder.glob("*.toml")):
        extra = _read(drop_in, files)
        if "extend" in extra:
            raise extra.error("extend", "a drop-in cannot extend a recipe")
        table = merged(table, extra, add=True)
    return table


def _read(path: Path, files: list[Path]) -> Table:
    files.append(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the recipe {path}: {error}") from error
    return placed(Source(str(path), text, path.parent), toml.loads(text, where=str(path)))


def _with_profile(table: Table, name: str) -> Table:
    """Merge one profile and remove [profile.*]. `card` and `size` are common; other keys belong to the kind."""
    profiles = table.table("profile")
    if name and name not in profiles:
        there = f"the recipe has {', '.join(profiles)}" if profiles else "the recipe has no profiles"
        raise UsageError(f"{table.where}: there is no profile {name!r}", hint=there)
    chosen = {each: profiles.table(each) for each in profiles}.get(name, Table(table.where))
    above, own = Table(table.where), Table(chosen.where)
    for key, value in chosen.items():
        part = above if key in _COMMON else own
        part[key], part.origin[key] = value, chosen.origin[key]
    if own:
        above[table.text("kind")] = own
    table = merged(table, above, add=True)
    table.pop("profile", None)
    return table


def _variables(table: Table, values: Mapping[str, str]) -> dict[str, Variable]:
    """Return the variables under [vars], with their defaults or the chosen values."""
    declared = table.table("vars")
    known: dict[str, Variable] = {}
    for key in declared:
        if not isinstance(declared[key], str | int):  # a bool is an int
            raise declared.error(key, f"the variable {key} must be a string, a whole number, true or false")
        if not _VARIABLE.fullmatch(f"@{key}@"):
            raise declared.error(key, f"{key!r} is not a name for a variable", hint="letters, digits and _")
        known[key] = declared[key]
    for key, value in values.items():
        if key not in known:
            hint = nearest(key, known) if known else "the recipe declares none under [vars]"
            raise UsageError(f"{table.where}: there is no variable {key!r}", hint=hint)
        known[key] = _typed(key, value, known[key])
    return known


def _typed(key: str, text: str, default: Variable) -> Variable:
    """Convert a value from the command line to the type of the default. UsageError if that fails."""
    if isinstance(default, bool):
        if text not in ("true", "false"):
            raise UsageError(f"--set {key}={text}: it can be true or false")
        return text == "true"
    if isinstance(default, int):
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
            raise UsageError(f"--set {key}={text}: it must be a whole number")
        return int(text)
    return text


def _substituted(table: Table, known: Mapping[str, Variable]) -> Table:
    made = Table(table.where)
    made.origin, made.sources = table.origin, table.sources
    for key, value in table.items():
        try:
            made[key] = _value(value, known)
        except KeyError as error:
            raise _unknown(table, key, str(error.args[0]), known) from None
    return made


def _unknown(table: Table, key: str, name: str, known: Mapping[str, Variable]) -> UsageError:
    return table.error(key, f"@{name}@ is not a variable of this recipe", hint=nearest(name, known))


def _value(value: Any, known: Mapping[str, Variable]) -> Any:
    if isinstance(value, Table):
        return _substituted(value, known)
    if isinstance(value, list):
        return [_value(item, known) for item in value]
    if isinstance(value, str):
        alone = _VARIABLE.fullmatch(value)
        if alone and alone[1] in known:
            return known[alone[1]]  # without other text, it keeps its type
        return substitute(value, known)
    return value


def substitute(text: str, known: Mapping[str, Variable]) -> str:
    """Replace the variables in a text. KeyError for a word that is nearly the name of one."""

    def replace(found: re.Match[str]) -> str:
        if found[1] in known:
            value = known[found[1]]
            return str(value).lower() if isinstance(value, bool) else str(value)
        if nearest(found[1], known).startswith("did"):
            raise KeyError(found[1])
        return found[0]

    return _VARIABLE.sub(replace, text)
