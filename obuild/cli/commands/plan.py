"""Show what a build would do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from obuild.cli import text as ui
from obuild.cli.console import executor_of, guarded, look_at, note, put, put_json, read_spec, spec_path
from obuild.cli.options import JsonOption, SourceArgument, SpecOption, StoreOption
from obuild.errors import UsageError

app = typer.Typer()


@app.command()
@guarded
def plan(
    source: SourceArgument,
    store: StoreOption = "",
    *,
    spec: SpecOption = "",
    secret: Annotated[
        list[str] | None,
        typer.Option(metavar="ID[:FILE]", help="As for build; the file is not read. May be repeated."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a build would do, and why, without building.

    Each step is marked `cached` or `build`. A step that is not in the store is compared with the most similar
    layer that is.

    Example: obuild plan .
    """
    from obuild.builder.preview import forecast
    from obuild.spec import parse

    stage = parse(read_spec(spec_path(source, spec)))
    names = [item.partition(":")[0] for item in secret or []]
    if "" in names:
        raise UsageError("--secret takes an ID, or ID:FILE")
    opened, executor = look_at(store), executor_of(store)
    steps = forecast(stage, source=Path(source), store=opened, secrets=names, say=note, executor=executor)
    if as_json:
        put_json(steps)
    else:
        put(*ui.outlook(steps))
