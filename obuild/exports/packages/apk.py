"""Alpine's packages: lib/apk/db/installed, one letter for each field.

https://wiki.alpinelinux.org/wiki/Apk_spec#Installed_Database_V2
"""

from __future__ import annotations

from obuild.exports.packages.package import Package
from obuild.host.trees.nodes import Tree

_PLACES = ("lib/apk/db/installed", "usr/lib/apk/db/installed")


def read(tree: Tree) -> list[Package] | None:
    """See `Database.read`."""
    text = next((found for place in _PLACES if (found := tree.read(place)) is not None), None)
    if text is None:
        return None
    packages = []
    for paragraph in text.decode("utf-8", "replace").split("\n\n"):
        fields = {line[0]: line[2:].strip() for line in paragraph.splitlines() if line[1:2] == ":"}
        if fields.get("P"):
            told = (fields["P"], fields.get("V", ""), fields.get("A", ""))
            packages.append(Package("apk", *told, license=fields.get("L", ""), source=fields.get("o", "")))
    return packages
