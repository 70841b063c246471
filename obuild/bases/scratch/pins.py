"""Pinned packages: --lock keeps them in the store, and --locked makes an archive of them.

That archive has just the packages of the lock file, so apt can choose no others. It need not be signed: each
package is compared with its digest in the lock file. An index, kept as a download too, has what the distribution's
archive said of these packages: dependencies and priorities, from which the order of installation follows.
"""

from __future__ import annotations

import email.utils
import hashlib
import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from obuild.bases import lockfile
from obuild.bases.kind import Installed, Making, Recipe
from obuild.bases.scratch import apt
from obuild.bases.scratch.apt import Apt
from obuild.bases.scratch.options import Options
from obuild.errors import ObuildError, ProcessError, UsageError
from obuild.guests.profile import DEBIAN_ARCHES
from obuild.host.fs import touch
from obuild.store import mtree
from obuild.store.downloads import Downloads, name_of


def keep(packages: Mapping[str, str], lists: Path, debs: Path, making: Making, *, mirror: str) -> Installed:
    """Keep the packages of an image in the store: the files in `debs`, and their entries in `lists`.

    Returns what the lock file shall have. ObuildError if the lists do not have one of the packages.
    """
    downloads = making.store.downloads
    stanzas = apt.stanzas(apt.indices(lists), packages.values())
    if unknown := [name for name, digest in packages.items() if digest not in stanzas]:
        raise ObuildError(f"the archive's lists do not have {', '.join(sorted(unknown)[:4])}")
    for deb in sorted(debs.glob("*.deb")):
        keep_file(deb, downloads)
    index = lists / "index"
    index.write_text(_index(stanzas), encoding="utf-8")
    releases = {_suite(path): path.read_text(encoding="utf-8") for path in apt.releases(lists)}
    dates = [email.utils.parsedate_to_datetime(apt.fields(text)["Date"]) for text in releases.values()]
    digests = {suite: f"sha256:{hashlib.sha256(text.encode()).hexdigest()}" for suite, text in releases.items()}
    archive = {
        "date": max(dates).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "index": keep_file(index, downloads),
    }
    return Installed(packages, digests, {**archive, "mirror": mirror} if mirror else archive)


def archive(recipe: Recipe, work: Path, making: Making) -> str:
    """Make an archive in `work` of the packages in the recipe's lock file. Return its line for sources.list.

    Packages that the store does not have any more are taken from the distribution's archive. UsageError, naming
    them, if that has them no more, either.
    """
    options: Options = recipe.options
    ask = cache(lambda: _updated(recipe, work / "apt", making))
    stanzas = _stanzas(recipe, making, ask)
    folder = work / "archive"
    pool = _place(folder, stanzas, making.store.downloads)
    missing = {digest: name for name, digest in recipe.packages.items() if digest not in pool}
    if missing:
        making.say(f"{recipe.name}: downloading {len(missing)} packages of {lockfile.path_of(recipe.path).name}")
        _refill(recipe, missing, making, ask)
        if missing.keys() - _place(folder, stanzas, making.store.downloads):
            raise ObuildError(
                f"{recipe.name}: a package was removed from {making.store.downloads.folder} meanwhile"
            )
    arch = _arch(recipe)
    index = _index(stanzas).encode()
    dist = folder / f"dists/{options.suite}"
    (dist / f"main/binary-{arch}").mkdir(parents=True)
    (dist / f"main/binary-{arch}/Packages").write_bytes(index)
    fields = {
        "Suite": options.suite,
        "Codename": options.suite,
        "Date": email.utils.format_datetime(datetime.fromisoformat(recipe.archive["date"]), usegmt=True),
        "Architectures": arch,
        "Components": "main",
        "SHA256": f"\n {hashlib.sha256(index).hexdigest()} {len(index)} main/binary-{arch}/Packages",
    }
    (dist / "Release").write_text("".join(f"{key}: {value}\n" for key, value in fields.items()))
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)  # whatever the umask is, another user must read it
    return apt.of_folder(folder, options.suite)


def _stanzas(recipe: Recipe, making: Making, ask: Callable[[], Apt]) -> dict[str, str]:
    """What the archive said of each package, by digest; asked again if the store no longer has it."""
    if kept := making.store.downloads.find(recipe.archive["index"]):
        touch(kept)
        return apt.stanzas([kept], recipe.packages.values())
    found = apt.stanzas(apt.indices(ask().lists), recipe.packages.values())
    _see_all_are_there(recipe, {name: digest for name, digest in recipe.packages.items() if digest not in found})
    return found


def _refill(recipe: Recipe, missing: Mapping[str, str], making: Making, ask: Callable[[], Apt]) -> None:
    """Take packages from the distribution's archive again, and keep them. UsageError if it has them no more."""
    stanzas = apt.stanzas(apt.indices(ask().lists), missing)
    _see_all_are_there(recipe, {name: digest for digest, name in missing.items() if digest not in stanzas})
    known = map(apt.fields, stanzas.values())
    for deb in ask().download(sorted(f"{each['Package']}={each['Version']}" for each in known)):
        keep_file(deb, making.store.downloads)


def _updated(recipe: Recipe, folder: Path, making: Making) -> Apt:
    options: Options = recipe.options
    sources = apt.lines(options.mirror or apt.MIRROR, options.suite, updates=options.updates)
    source = Apt(folder, _arch(recipe), sources)
    making.say(f"{recipe.name}: asking the package archive")
    try:
        source.update()
    except ProcessError as error:
        lacking = f"{recipe.name}: the store lacks packages of the lock file"
        raise ObuildError(f"{lacking}, and the archive cannot be read: {error.message}") from error
    return source


def _see_all_are_there(recipe: Recipe, missing: Mapping[str, str]) -> None:
    """UsageError, naming them, if packages are in no archive any more."""
    if missing:
        date = datetime.fromisoformat(recipe.archive["date"]).strftime("%Y%m%dT%H%M%SZ")
        shown = ", ".join(sorted(missing)[:4]) + (f", and {len(missing) - 4} more" if len(missing) > 4 else "")
        raise UsageError(
            f"neither the store nor the archive has these packages of {lockfile.path_of(recipe.path)}: {shown}",
            hint="an archive that keeps all packages may have them; write into the recipe:"
            f' mirror = "http://snapshot.debian.org/archive/debian/{date}"',
        )


def see_all_are_locked(recipe: Recipe) -> None:
    """UsageError if the recipe asks for packages that its lock file does not have."""
    locked = {name.partition("_")[0] for name in recipe.packages}
    if new := sorted(set(recipe.options.packages) - locked):
        raise UsageError(
            f"{lockfile.path_of(recipe.path)} does not have {', '.join(new)}",
            hint="a lock file is for one profile; obuild base make --lock makes a new one",
        )


def _place(folder: Path, stanzas: Mapping[str, str], downloads: Downloads) -> set[str]:
    """Copy packages from the store to their places in an archive; returns the digests of those that are there."""
    there = set()
    for digest, stanza in stanzas.items():
        place = folder / apt.fields(stanza)["Filename"]
        if not place.exists() and (kept := downloads.find(digest)):
            touch(kept)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(kept, place)
        if place.exists():
            there.add(digest)
    return there


def keep_file(file: Path, downloads: Downloads) -> str:
    """Keep a copy of a file in the store; returns its digest."""
    digest = f"sha256:{mtree.digest(file)}"
    name = name_of(digest)
    with downloads.lock(name):
        if there := downloads.find(digest):
            touch(there)
        else:
            part = downloads.begin(name)
            shutil.copyfile(file, part)
            downloads.keep(part, digest)
    return digest


def _index(stanzas: Mapping[str, str]) -> str:
    """The text of an index, in the order of names: it does not matter which suites the packages came from."""
    return "".join(f"{stanza}\n\n" for stanza in sorted(stanzas.values()))


def _suite(release: Path) -> str:
    """The suite of a release file, which apt names by its address."""
    return release.name.rpartition("_dists_")[2].rpartition("_")[0]


def _arch(recipe: Recipe) -> str:
    return DEBIAN_ARCHES.get(recipe.card.arch, recipe.card.arch)
