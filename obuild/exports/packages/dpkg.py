"""Debian's packages: /var/lib/dpkg/status, and status.d of images that are made without dpkg."""

from __future__ import annotations

from collections.abc import Iterator

from obuild.exports.packages.package import Package
from obuild.host.trees.nodes import Tree, content

_STATUS = "var/lib/dpkg/status"


def read(tree: Tree) -> list[Package] | None:
    """See `Database.read`."""
    texts = [found for found in [tree.read(_STATUS)] if found is not None]
    folder = tree.find(f"{_STATUS}.d")
    if folder is not None and folder.is_folder:
        nodes = (node for node in tree.children(folder) if node.is_file and not node.name.endswith(".md5sums"))
        texts += [content(node).rstrip() + b"\nStatus: install ok installed\n" for node in nodes]
    return [package for text in texts for package in _packages(text)] if texts else None


def _packages(text: bytes) -> Iterator[Package]:
    for paragraph in text.decode("utf-8", "replace").split("\n\n"):
        fields = {}
        for line in paragraph.splitlines():
            key, colon, value = line.partition(":")
            if colon and not line[0].isspace():
                fields[key] = value.strip()
        if fields.get("Package") and fields.get("Status", "").endswith(" installed"):
            source = fields.get("Source", "").partition(" ")[0]
            yield Package(
                "deb", fields["Package"], fields.get("Version", ""), fields.get("Architecture", ""), source=source
            )
