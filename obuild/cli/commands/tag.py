"""Set, list and remove tags: names for layers."""

from __future__ import annotations

from typing import Annotated

import typer
from typer.core import TyperGroup

from obuild.cli import text
from obuild.cli.console import guarded, look_at, open_store, put, put_json
from obuild.cli.options import IdArgument, JsonOption, StoreOption
from obuild.errors import ObuildError, UsageError


class _AddByDefault(TyperGroup):
    """A group whose default command is `add`: `obuild tag ID NAME`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        words = [each for each in args if not each.startswith("-")]
        if words and words[0] in self.commands:  # options may come before it
            args.remove(words[0])
            args = [words[0], *args]
        elif words:
            args = ["add", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_AddByDefault,
    help="Tag layers, which keeps them: `obuild tag ID NAME`.",
    no_args_is_help=True,
)


@app.command("add")
@guarded
def add(
    id: IdArgument,
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="The tags to set or move.")],
    store: StoreOption = "",
) -> None:
    """Give a layer one or more tags. A tag of another layer moves.

    A tag works wherever an id does. The layer and all its ancestors are kept until the tag is removed. `add` may
    be left out.

    Example: obuild tag 3f2a web web:1.2
    """
    from obuild.store.index import resolve
    from obuild.store.tags import checked

    names = [checked(name) for name in names]
    opened = open_store(store)
    layer = resolve(opened, id)
    for name in names:
        opened.tag(layer, name)


@app.command("ls")
@guarded
def list_tags(store: StoreOption = "", as_json: JsonOption = False) -> None:
    """List the tags: name, layer, and when it was set.

    Example: obuild tag ls
    """
    tags = look_at(store).tags.all()
    if as_json:
        put_json(tags)
    else:
        put(*(f"{tag.name:20}  {tag.id[:12]}  {text.ago(tag.set):>7}" for tag in tags))


@app.command("rm")
@guarded
def remove(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="The tags to remove.")],
    store: StoreOption = "",
) -> None:
    """Remove tags. Their layers stay until `prune` or `rm` removes them.

    Example: obuild tag rm web
    """
    opened = open_store(store)
    unknown = [name for name in names if not opened.tags.is_there(name)]
    if unknown:
        known = ", ".join(tag.name for tag in opened.tags.all()[:20]) or "none"
        raise UsageError(f"there is no tag {text.word(unknown[0])}", hint=f"there are: {known}")
    gone = [name for name in names if not opened.tags.remove(name)]
    if gone:
        raise ObuildError(f"another command has just removed the tag {gone[0]}")
