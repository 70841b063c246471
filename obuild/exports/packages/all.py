"""The databases of packages that are read, and what is in all of them."""

from __future__ import annotations

from typing import NamedTuple

from obuild.exports.packages import apk, dpkg, package, pacman, rpm
from obuild.exports.packages.package import Database, Package, Release
from obuild.host.trees.nodes import Tree

DATABASES: dict[str, Database] = {"dpkg": dpkg, "rpm": rpm, "apk": apk, "pacman": pacman}


class Inventory(NamedTuple):
    """The packages of a layer, sorted, and what it says that it is. `databases` are those that it has."""

    release: Release
    packages: tuple[Package, ...]
    databases: tuple[str, ...]


def inventory(tree: Tree) -> Inventory:
    """What is installed in a tree. UsageError if it has a database that cannot be read here."""
    found = {name: read for name, each in DATABASES.items() if (read := each.read(tree)) is not None}
    packages = sorted({each for packages in found.values() for each in packages})
    return Inventory(package.release(tree), tuple(packages), tuple(found))
