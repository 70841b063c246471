"""Show how two layers differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from obuild.cli.bar import Bar
from obuild.cli.console import guarded, look_at, note, put, put_json
from obuild.cli.options import JsonOption, StoreOption, VerboseOption

if TYPE_CHECKING:
    from obuild.exports.diff import ChangedFile, ChangedPackage

app = typer.Typer()


@app.command()
@guarded
def diff(
    before: Annotated[
        str, typer.Argument(metavar="BEFORE", help="A layer: its id, the first digits of it, or a tag.")
    ],
    after: Annotated[str, typer.Argument(metavar="AFTER", help="The layer that is compared with it.")],
    store: StoreOption = "",
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Show how two layers differ: their packages and their files.

    Both are read from their images, without booting them. + is only in the second layer, - only in the first; ~ is
    in both, followed by what differs. Times of files are not compared.

    Example: obuild diff pg16 pg17
    """
    from obuild.builder.provision import base_below
    from obuild.exports import diff, layer_tree
    from obuild.store.index import resolve

    opened = look_at(store)
    ids = [resolve(opened, each) for each in (before, after)]
    cards = [base_below(opened, id).card for id in ids]
    with (
        Bar("comparing"),
        layer_tree.opened(opened, ids[0], cards[0]) as (one, old),
        layer_tree.opened(opened, ids[1], cards[1]) as (two, new),
    ):
        found = diff.compare(old, new, diff.Owners(one.image, two.image))
    if as_json:
        put_json(found)
        return
    put(*(_package(each) for each in found.packages), *(_file(each) for each in found.files))
    if not found.packages and not found.files:
        note("the layers have the same packages and files")


def _package(changed: ChangedPackage) -> str:
    from obuild.cli.text import word

    name = word(f"{changed.name}:{changed.arch}" if changed.arch else changed.name)
    if changed.before and changed.after:
        return f"~ package {name} {word(changed.before)} -> {word(changed.after)}"
    return f"{'+' if changed.after else '-'} package {name} {word(changed.before or changed.after)}"


def _file(changed: ChangedFile) -> str:
    from obuild.cli.text import word
    from obuild.host import units

    path = word(changed.path)
    if changed.change == "changed":
        return f"~ {path} {', '.join(changed.what)}"
    size = changed.before if changed.after is None else changed.after
    told = "" if size is None else f" {units.size(size)}"
    return f"{'+' if changed.change == 'added' else '-'} {path}{told}"
