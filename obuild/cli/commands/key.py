"""Keys that sign layers in remotes, and certificates for farms."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from obuild.cli.console import guarded, put

app = typer.Typer(help="Make keys that sign layers, and certificates for a farm.", no_args_is_help=True)


@app.command("make")
@guarded
def make(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write the private key.")],
) -> None:
    """Make a pair of keys to sign layers with.

    FILE signs, and FILE.pub is for those who trust it. Neither may exist.

    Example: obuild key make layers.key
    """
    from obuild.remotes.trust import make as make_key

    put(str(make_key(file)))


@app.command("tls")
@guarded
def tls(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to write the certificates.")],
) -> None:
    """Make the certificates of a farm: ca.pem, farm.pem and farm.key. None may exist.

    Scheduler, workers and builds use the same ones; who has them can run programs on all workers.

    Example: obuild key tls farm-tls
    """
    from obuild.builder.farm.tls import make as make_certificates

    make_certificates(folder)
    put(str(folder))
