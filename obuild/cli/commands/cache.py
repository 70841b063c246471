"""Caches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from obuild.cli import text
from obuild.cli.bar import Bar
from obuild.cli.console import guarded, look_at, open_store, put, put_json
from obuild.cli.options import JsonOption, StoreOption

app = typer.Typer(
    help="List, remove, export and import caches.\n\nThey are the folders that steps share with (cache NAME …).",
    no_args_is_help=True,
)
CacheArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="The cache's name, as in `(cache (NAME …))` in a spec.")
]


@app.command("ls")
@guarded
def cache_list(store: StoreOption = "", as_json: JsonOption = False) -> None:
    """List the caches: size, when a step last changed it, and name.

    Example: obuild cache ls
    """
    there = look_at(store).caches.listing()
    if as_json:
        put_json(there)
    else:
        put(
            *(
                f"{text.size(cache.size):>10}  {text.ago(cache.changed):>7}  {text.word(cache.name)}"
                for cache in there
            )
        )


@app.command("rm")
@guarded
def cache_remove(name: CacheArgument, store: StoreOption = "") -> None:
    """Remove a cache. The next step that uses it starts with an empty one.

    Example: obuild cache rm apt-archives
    """
    open_store(store).caches.remove(name)


@app.command("export")
@guarded
def cache_export(
    name: CacheArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write the tar archive.")],
    store: StoreOption = "",
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
) -> None:
    """Copy a cache into a tar archive.

    It is for another store, or to examine it. The content comes from guests: check it before you unpack it.

    Example: obuild cache export apt-archives apt.tar
    """
    opened = open_store(store)
    with Bar(f"copying the cache {name}"):
        opened.caches.export(name, file, force=force)


@app.command("import")
@guarded
def cache_import(
    name: CacheArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An uncompressed tar archive.")],
    store: StoreOption = "",
) -> None:
    """Replace the content of a cache with a tar archive.

    Example: obuild cache import apt-archives apt.tar
    """
    opened = open_store(store, create=True)
    with Bar(f"copying the cache {name}"):
        opened.caches.put(file, name)
