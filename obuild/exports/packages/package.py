"""A package, and what it is called everywhere: https://github.com/package-url/purl-spec"""

from __future__ import annotations

from typing import NamedTuple, Protocol
from urllib.parse import quote

from obuild.host.trees.nodes import Tree


class Package(NamedTuple):
    """An installed package. `kind` is its type in a purl; `license` is as the package has it, often empty."""

    kind: str
    name: str
    version: str
    arch: str = ""
    epoch: str = ""
    license: str = ""
    source: str = ""


class Release(NamedTuple):
    """What the layer says that it is: os-release(5)."""

    id: str = "linux"
    version: str = ""
    name: str = "Linux"


class Database(Protocol):
    """The database of a package manager."""

    def read(self, tree: Tree) -> list[Package] | None:
        """The packages of a tree, in any order; None if it has no such database.

        UsageError if it has one that cannot be read here, ObuildError if it is damaged.
        """
        ...


def release(tree: Tree) -> Release:
    """What the tree says that it is."""
    told = {}
    for line in (tree.read("etc/os-release") or tree.read("usr/lib/os-release") or b"").splitlines():
        key, _, value = line.decode("utf-8", "replace").partition("=")
        told[key.strip()] = value.strip().strip("\"'")
    id = told.get("ID") or "linux"
    return Release(id, told.get("VERSION_ID", ""), told.get("PRETTY_NAME") or told.get("NAME") or Release().name)


def purl(package: Package, release: Release) -> str:
    """The package URL of a package, whose parts are in the order that makes it unique."""
    distro = "-".join(part for part in (release.id, release.version) if part)
    qualifiers = {
        "arch": package.arch,
        "distro": distro,
        "epoch": package.epoch,
        "upstream": package.source if package.source != package.name else "",
    }
    told = "&".join(f"{key}={_quote(value)}" for key, value in sorted(qualifiers.items()) if value)
    version = f"@{_quote(package.version)}" if package.version else ""
    return f"pkg:{package.kind}/{_quote(release.id)}/{_quote(package.name)}{version}?{told}"


def _quote(text: str) -> str:
    return quote(text, safe=":", errors="replace")
