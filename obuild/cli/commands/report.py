"""Write a report about a build."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from obuild.cli.console import guarded, look_at, put, write_file
from obuild.cli.options import StoreOption

app = typer.Typer()


@app.command()
@guarded
def report(
    build: Annotated[
        str,
        typer.Argument(
            metavar="[BUILD]",
            help="A build that `obuild history` lists, `last`, or a layer or tag: then the last build of it.",
        ),
    ] = "last",
    store: StoreOption = "",
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The file, which is replaced if it exists.")
    ] = Path("report.html"),
) -> None:
    """Write a report about a build, as one HTML file.

    It has a graph of the stages and steps, a timeline, the time and size of each step, why it was made, the fields
    of its key, and the logs, with search. Long logs are cut.

    Example: obuild report last -o report.html
    """
    from obuild.cli.graph import model, svg
    from obuild.cli.report import data
    from obuild.cli.report.page import page

    shown, stages, name = data.of(look_at(store), build)
    graph = svg.draw(model.graph(stages), label="the stages and steps of the build")
    write_file(output, page(f"obuild: build {name}", shown, graph).encode())
    put(str(output))
