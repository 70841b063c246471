"""Arch's packages: /var/lib/pacman/local/NAME-VERSION/desc, in which %FIELD% precedes its lines."""

from __future__ import annotations

from obuild.exports.packages.package import Package
from obuild.host.trees.nodes import Tree, content

_FOLDER = "var/lib/pacman/local"


def read(tree: Tree) -> list[Package] | None:
    """See `Database.read`."""
    folder = tree.find(_FOLDER)
    if folder is None or not folder.is_folder:
        return None
    packages = []
    for node in tree.children(folder):
        described = [each for each in tree.children(node) if each.name == "desc"] if node.is_folder else []
        for desc in described:
            fields = _fields(content(desc).decode("utf-8", "replace"))
            if fields.get("NAME"):
                license = " AND ".join(fields.get("LICENSE", "").split("\n"))
                told = (fields["NAME"], fields.get("VERSION", ""), fields.get("ARCH", ""))
                packages.append(Package("alpm", *told, license=license, source=fields.get("BASE", "")))
    return packages


def _fields(text: str) -> dict[str, str]:
    fields = {}
    for paragraph in text.split("\n\n"):
        head, _, value = paragraph.strip().partition("\n")
        fields[head.strip("%")] = value.strip()
    return fields
