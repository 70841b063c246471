"""Show what a build would do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from obuild.cli import text as ui
from obuild.cli.console import executor_of, guarded, look_at, note, put, put_json, read_spec, spec_path
from obuild.cli.options import JsonOption, SourceArgument, SpecOption, StoreOption
from obuild.errors import SpecError, UsageError

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
    layer that is. With --json, a mistake in the spec is printed with its line and column, for editors.

    Example: obuild plan .
    """
    from obuild.builder.preview import forecast
    from obuild.spec import parse

    try:
        stage = parse(read_spec(spec_path(source, spec)))
    except SpecError as error:
        if as_json:  # so that an editor can mark the place
            put_json({"line": error.line, "column": error.column, "message": error.message, "hint": error.hint})
        raise
    names = [item.partition(":")[0] for item in secret or []]
    if "" in names:
        raise UsageError("--secret takes an ID, or ID:FILE")
    opened, executor = look_at(store), executor_of(store)
    steps = forecast(stage, source=Path(source), store=opened, secrets=names, say=note, executor=executor)
    if as_json:
        put_json(steps)
    else:
        put(*ui.outlook(steps))
