"""Keys that sign layers in remotes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from obuild.cli.console import guarded, put

app = typer.Typer(help="Make keys that sign layers: `push --sign`, and `pull --trust`.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Without this, typer would make the only command that of the group."""


@app.command("make")
@guarded
def make(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write the private key.")],
) -> None:
    """Make a key pair: FILE, which signs, and FILE.pub, which others trust. Neither may exist.

    Example: obuild key make layers.key
    """
    from obuild.remotes.trust import make as make_key

    put(str(make_key(file)))
