"""Look into remotes, and remove what is in them."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from obuild.cli import text
from obuild.cli.bar import Bar
from obuild.cli.console import environment, guarded, put, put_json, say
from obuild.cli.options import (
    InsecureOption,
    JsonOption,
    RemoteArgument,
    VerboseOption,
    in_remote,
    parse_bytes,
)
from obuild.errors import UsageError
from obuild.host import units

if TYPE_CHECKING:
    from obuild.remotes.gc import Listed

app = typer.Typer(
    help="List and remove layers in a remote.\n\nIt is a registry, bucket or folder where stores share layers.",
    no_args_is_help=True,
)


@app.command("ls")
@guarded
def list_layers(
    remote: RemoteArgument,
    *,
    insecure: InsecureOption = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """List the layers in a remote, the newest last.

    Each line shows its id, age, compressed size, op and tags.

    Example: obuild remote ls oci://registry.example/team/layers
    """
    from obuild.remotes import gc
    from obuild.remotes.all import Access, open_remote

    with open_remote(remote, Access(environment(), insecure)) as opened:
        found = gc.listing(opened)
    if as_json:
        put_json([{name: value for name, value in asdict(each).items() if name != "blobs"} for each in found])
        return
    put(*map(_line, found))
    put(f"{units.count(len(found), 'layer')}, {units.size(gc.total(found))}")


@app.command("rm")
@guarded
def remove(
    words: Annotated[list[str], typer.Argument(metavar="ID... REMOTE", help="Layers or tags, and the remote.")],
    *,
    insecure: InsecureOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Remove layers, with all layers built on them, from a remote. Of a tag, only the name is removed.

    If a layer that would be removed has a tag, nothing is. Registries free the space when they collect garbage.

    Example: obuild remote rm 3f2a oci://registry.example/team/layers
    """
    from obuild.remotes import gc, names
    from obuild.remotes.all import Access, open_remote
    from obuild.store.tags import could_be_id

    wanted, name = in_remote(words, "remote rm")
    with open_remote(name, Access(environment(), insecure)) as remote:
        ids = {word: names.resolve(remote, word) for word in wanted}
        tags = [word for word in ids if not could_be_id(word)]
        layers = {id for word, id in ids.items() if could_be_id(word)}
        doomed = gc.with_descendants(gc.listing(remote), layers) if layers else []
        if missing := layers - {each.id for each in doomed}:
            raise UsageError(f"{name} has no layer {min(missing)[:12]}", hint=f"obuild remote ls {name}")
        gc.see_untagged(remote, [each for each in doomed if set(each.tags) - set(tags)])
        remote.remove([names.tag_of(tag) for tag in tags])
        with Bar("removing") as bar:
            tell = bar.under(say)
            gc.remove(remote, doomed, lambda id: tell(f"Removing {id}"))
            remote.sweep()


@app.command("gc")
@guarded
def collect(
    remote: RemoteArgument,
    *,
    older_than: Annotated[
        str, typer.Option(metavar="TIME", help="Remove layers that were made before TIME: 30m, 12h, 7d, 4w.")
    ] = "",
    keep_bytes: Annotated[
        str, typer.Option(metavar="SIZE", help="Remove the oldest layers until the rest takes at most SIZE.")
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
    insecure: InsecureOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Free space in a remote: remove old layers and unused blobs.

    Blobs are removed when no layer has needed them for a day.

    Tagged layers stay, and all that a layer that stays is built on.

    Example: obuild remote gc --older-than 4w s3://bucket/layers
    """
    from obuild.remotes import gc
    from obuild.remotes.all import Access, open_remote

    keep = parse_bytes("--keep-bytes", keep_bytes) if keep_bytes else None
    try:
        before = time.time() - units.duration(older_than) if older_than else None
    except ValueError as error:
        raise UsageError(f"--older-than: {error}", hint="for example 30m, 12h, 7d, 4w") from error
    with open_remote(remote, Access(environment(), insecure)) as opened:
        layers = gc.listing(opened)
        doomed = gc.plan(layers, before=before, keep_bytes=keep)
        if dry_run:
            put(*map(_line, doomed), f"Would remove {units.count(len(doomed), 'layer')}")
            return
        with Bar("removing") as bar:
            tell = bar.under(say)
            gc.remove(opened, doomed, lambda id: tell(f"Removing {id}"))
            freed = opened.sweep()
        put(f"Removed {units.count(len(doomed), 'layer')}" + (f", freed {units.size(freed)}" if freed else ""))


def _line(layer: Listed) -> str:
    about = f"{text.ago(layer.created):>7}  {text.size(layer.size):>10}"
    tags = f"  [{', '.join(layer.tags)}]" if layer.tags else ""
    return f"{layer.id[:12]}  {about}  {text.one_line(text.word(layer.op), 60)}{tags}"
