"""List the packages of a layer for programs that look for vulnerable ones."""

from __future__ import annotations

from typing import Annotated

import typer

from obuild.cli.bar import Bar
from obuild.cli.console import guarded, look_at, note, put_bytes
from obuild.cli.options import IdArgument, StoreOption, VerboseOption

app = typer.Typer()


@app.command()
@guarded
def sbom(
    id: IdArgument,
    format: Annotated[
        str, typer.Option("--format", metavar="cyclonedx|spdx", help="CycloneDX 1.6 or SPDX 2.3, both as JSON.")
    ] = "cyclonedx",
    store: StoreOption = "",
    verbose: VerboseOption = False,
) -> None:
    """Print the software bill of materials (SBOM) of a layer.

    It lists the packages of dpkg, rpm, apk and pacman, for programs that look for vulnerable ones. They are read
    from the layer's image, without booting it.

    Example: obuild sbom pg16 >pg16.cdx.json
    """
    from obuild.bases.table import nearest
    from obuild.builder.provision import base_below
    from obuild.errors import UsageError
    from obuild.exports import layer_tree
    from obuild.exports.packages.all import DATABASES, inventory
    from obuild.exports.sbom import FORMATS
    from obuild.store.index import resolve

    if format not in FORMATS:
        raise UsageError(f"unknown format {format!r}", hint=nearest(format, FORMATS))
    opened = look_at(store)
    found = resolve(opened, id)
    card = base_below(opened, found).card
    with Bar("reading the layer"), layer_tree.opened(opened, found, card) as (_, tree):
        packages = inventory(tree)
    if not packages.databases:
        note(f"the layer has no packages of {', '.join(DATABASES)}")
    put_bytes(FORMATS[format].write(packages, found))
