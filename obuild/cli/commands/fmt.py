"""Format a spec."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from obuild.cli.console import guarded, read_spec
from obuild.errors import ObuildError, UsageError

app = typer.Typer()


@app.command()
@guarded
def fmt(
    spec: Annotated[
        str, typer.Option("--file", "-f", metavar="SPEC", help="The spec to format; - is standard input.")
    ] = "-",
    check: Annotated[
        bool, typer.Option("--check", help="Only check; exit with 1 if the spec would change.")
    ] = False,
    write: Annotated[bool, typer.Option("--write", "-w", help="Rewrite the file instead of printing.")] = False,
) -> None:
    """Print a spec in the standard layout, with its comments.

    This is the layout that OBuilder prints. The meaning does not change: every step keeps its id.

    Example: obuild fmt --write -f hello.spec
    """
    from obuild.spec import reformat

    if write and (check or spec == "-"):
        raise UsageError(
            "--write does not work " + ("with --check" if check else "on standard input: add -f SPEC")
        )
    text = sys.stdin.buffer.read() if spec == "-" else read_spec(Path(spec))
    done = reformat.tidy(text)
    if check and done != text:
        name = "standard input" if spec == "-" else spec
        raise ObuildError(f"{name} would change", hint=f"obuild fmt --write -f {spec}" if spec != "-" else "")
    if write and done != text:
        reformat.rewrite(Path(spec), done)
    if not check and not write:
        sys.stdout.buffer.write(done)
