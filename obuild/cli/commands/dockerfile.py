"""Print a spec as a Dockerfile."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from obuild.cli.console import guarded, read_spec
from obuild.errors import UsageError

app = typer.Typer()


@app.command()
@guarded
def dockerfile(
    spec: Annotated[
        str, typer.Option("--file", "-f", metavar="SPEC", help="The spec to convert.")
    ] = "obuild.spec",
    buildkit: Annotated[
        bool, typer.Option("--buildkit", help="Use BuildKit's syntax for caches and secrets.")
    ] = False,
    escape: Annotated[str, typer.Option(metavar="unix|windows", help="The style of line continuations.")] = "unix",
) -> None:
    """Print a spec as a Dockerfile."""
    from obuild.spec import dockerfile as convert
    from obuild.spec import parse

    if escape not in ("unix", "windows"):
        raise UsageError(f"--escape {escape}: it can be unix or windows")
    text = convert.dockerfile(
        parse(read_spec(Path(spec))), buildkit=buildkit, escape="windows" if escape == "windows" else "unix"
    )
    sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape") + b"\n")
