"""Show what a build would do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from obuild.cli import text as ui
from obuild.cli.console import executor_of, guarded, look_at, note, put, put_json, read_spec, spec_path, write_file
from obuild.cli.options import JsonOption, SourceArgument, SpecOption, StoreOption
from obuild.errors import SpecError, UsageError

if TYPE_CHECKING:
    from obuild.builder.preview import Outlook, StageOutlook
    from obuild.cli.graph import model
    from obuild.events import PlannedStep

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
    graph: Annotated[
        Path | None,
        typer.Option("--graph", metavar="FILE.svg|FILE.dot", help="Also draw the stages and their steps."),
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
    if graph and graph.suffix not in (".svg", ".dot"):
        raise UsageError(f"--graph {graph}: its name must end in .svg or .dot")
    opened, executor = look_at(store), executor_of(store)
    stages = forecast(stage, source=Path(source), store=opened, secrets=names, say=note, executor=executor)
    steps = [step for each in stages for step in each.steps]
    if graph:
        _draw(stages, graph)
    if as_json:
        put_json(steps)
    else:
        put(*ui.outlook(steps))


def _draw(stages: Sequence[StageOutlook], file: Path) -> None:
    from obuild.cli.graph import dot, model, svg

    drawn = model.graph([model.Stage(each.path, list(map(_step, each.planned, each.steps))) for each in stages])
    text = dot.dot(drawn) if file.suffix == ".dot" else svg.draw(drawn, label="the stages of the build")
    write_file(file, text.encode())


def _step(planned: PlannedStep, outlook: Outlook) -> model.Step:
    from obuild.cli.graph import model

    state = "cached" if outlook.cached else "build"
    detail = "; ".join((ui.one_line(outlook.op, 400), *outlook.why))
    return model.Step(planned.op, planned.text, state, planned.origin, detail)
