"""Format specs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from obuild.cli import text as ui
from obuild.cli.console import guarded, note, read_spec
from obuild.errors import ObuildError, UsageError

app = typer.Typer()


@app.command()
@guarded
def fmt(
    specs: Annotated[
        list[str] | None, typer.Argument(metavar="[SPEC]...", help="Specs to check or to rewrite.")
    ] = None,
    spec: Annotated[
        str, typer.Option("--file", "-f", metavar="SPEC", help="The spec to format; - is standard input.")
    ] = "-",
    check: Annotated[
        bool, typer.Option("--check", help="Only check; exit with 1 if a spec would change.")
    ] = False,
    write: Annotated[bool, typer.Option("--write", "-w", help="Rewrite files instead of printing.")] = False,
) -> None:
    """Print a spec in the standard layout, with its comments.

    This is the layout that OBuilder prints. The meaning does not change: every step keeps its id. Several specs
    can be checked or rewritten at once; editors/README.md tells how to do so before a commit.

    Example: obuild fmt --write -f hello.spec
    """
    if specs:
        if spec != "-" or check == write:
            raise UsageError("several specs can be checked or rewritten", hint="--check or --write, without -f")
        _each(specs, write=write)
        return
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


def _each(specs: list[str], *, write: bool) -> None:
    """Check or rewrite each of these specs. A mistake in one does not keep the others from being looked at."""
    from obuild.spec import reformat

    wrong, change = [], 0
    for name in specs:
        try:
            text = read_spec(Path(name))
            done = reformat.tidy(text)
        except UsageError as error:
            wrong.append(error)
            ui.report(error, file=name)
            continue
        if done != text:
            change += 1
            if write:
                reformat.rewrite(Path(name), done)
            note(f"{name} {'is rewritten' if write else 'would change'}")
    if wrong:
        raise UsageError(f"{len(wrong)} of {len(specs)} specs cannot be read")
    if change and not write:
        raise ObuildError(f"{change} of {len(specs)} specs would change", hint="obuild fmt --write rewrites them")
