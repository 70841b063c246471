"""List the builds of a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from obuild.cli import text
from obuild.cli.console import guarded, look_at, put, put_json
from obuild.cli.options import JsonOption, StoreOption

if TYPE_CHECKING:
    from obuild.builder.history import Build

app = typer.Typer()


@app.command()
@guarded
def history(
    store: StoreOption = "",
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", metavar="N", min=0, help="List the N newest. [default: all]")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the last 100 builds, the newest last.

    Each line shows when a build began (in UTC, which is also its name for `obuild report`), how long ago, how long
    it took, how many steps it made and found, its outcome, the layer that it gave, and its spec.

    Example: obuild history -n 10
    """
    from obuild.builder.history import builds

    found = builds(look_at(store))
    if limit is not None:
        found = found[len(found) - min(limit, len(found)) :]
    if as_json:
        put_json(found)
    else:
        put(*map(_line, found))


def _line(build: Build) -> str:
    took = "-" if build.seconds is None else f"{build.seconds:.1f} s"
    steps = f"{build.made} made, {build.cached} cached"
    what = build.result[:12] if build.outcome == "done" else build.outcome
    return f"{build.id:15}  {text.ago(build.began):>7}  {took:>9}  {steps:20}  {what:12}  {_near(build.spec)}"


def _near(spec: str) -> str:
    """The path of a spec, relative to the current folder if it is in there."""
    path = Path(spec)
    here = Path.cwd()
    return text.word(str(path.relative_to(here) if path.is_relative_to(here) else path))
