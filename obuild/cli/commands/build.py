"""Build a spec."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from obuild.cli import text as ui
from obuild.cli.console import guarded, lines, open_store, read_file, read_spec
from obuild.cli.options import (
    MACHINE,
    Machine,
    SourceArgument,
    StoreOption,
    VerboseOption,
    machine_options,
    parse_bytes,
)
from obuild.errors import UsageError

if TYPE_CHECKING:
    from obuild.events import Listener
    from obuild.plan.keys import LayerId
    from obuild.store.layers import Store

app = typer.Typer()


@app.command()
@guarded
@machine_options
def build(
    source: SourceArgument,
    store: StoreOption,
    *,
    spec: Annotated[str, typer.Option("--file", "-f", metavar="SPEC", help="The spec to build.")],
    tag: Annotated[
        list[str] | None,
        typer.Option("--tag", "-t", metavar="NAME", help="Name the result; it is kept then. May be repeated."),
    ] = None,
    secret: Annotated[
        list[str] | None, typer.Option(metavar="ID:FILE", help="A value for (secrets ID). May be repeated.")
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", metavar="N", min=1, help="How many independent stages to build at once.")
    ] = 1,
    reserve: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            help="Before each step, prune the store as `gc` does if less than SIZE is free on its disk.",
        ),
    ] = "",
    max_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Before each step, prune the store if it takes more than SIZE.")
    ] = "",
    events: Annotated[
        str,
        typer.Option(
            metavar="lines|json", help="How to tell what happens: for people, or one JSON record a line."
        ),
    ] = "lines",
    machine: Machine,
    vm: Annotated[
        str,
        typer.Option(
            metavar="auto|warm|boot",
            rich_help_panel=MACHINE,
            help="Whether machines last from step to step, and are saved and resumed (warm), or each step boots "
            "one. auto is warm for guests that can.",
        ),
    ] = "auto",
    warm_budget: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            rich_help_panel=MACHINE,
            help="What all saved machines of the store may take on disk; 0 saves none.",
        ),
    ] = "4G",
    on_failure: Annotated[
        str,
        typer.Option(
            metavar="stop|shell|keep",
            help="If a command fails: stop, or open a shell in its machine, or keep that until you press Ctrl-C.",
        ),
    ] = "stop",
    verbose: VerboseOption = False,
) -> None:
    """Build a spec: find the layers that are there, make those that are not.

    Example: obuild build --store=qemu:/data -f hello.spec .
    """
    from obuild.builder import engine
    from obuild.builder import on_failure as failing
    from obuild.events import Teller
    from obuild.spec import parse
    from obuild.store.tags import checked

    tell = _listener(events)
    with ui.ending(tell):
        stage = parse(read_spec(Path(spec)))
        names = [checked(name) for name in tag or []]
        settings = machine.settings(vm=vm, warm_budget=warm_budget)
        if not Path(source).is_dir():
            raise UsageError(f"there is no source directory {source}")
        reserved = parse_bytes("--reserve", reserve) if reserve else 0
        most = parse_bytes("--max-size", max_size) if max_size else None
        opened = open_store(store, create=True)
        values = _secrets(secret or [])

        def name_it(id: LayerId, tell: Teller) -> None:
            for name in names:
                opened.tag(id, name)
                tell.note(f"tagged {name}")

        with _in_turn(tell, opened, jobs) as listener:
            builder = engine.Engine(Path(source), opened, settings, listener, values, jobs)
            builder.on_failure = failing.chosen(on_failure, jobs=jobs, say=Teller(listener).note)
            builder.on_built = name_it
            if reserve or max_size:
                from obuild.store.quota import Room

                builder.make_room = Room(opened, reserved, most).make
            builder.build(stage)


def _listener(events: str) -> ui.Lines | ui.JsonLines:
    if events not in ("lines", "json"):
        raise UsageError(f"--events {events}: it can be lines or json")
    return ui.JsonLines(sys.stdout.buffer) if events == "json" else lines()


def _in_turn(tell: ui.Lines | ui.JsonLines, store: Store, jobs: int) -> AbstractContextManager[Listener]:
    """A listener that keeps the lines of stages apart, if several are built at once."""
    if jobs == 1 or not isinstance(tell, ui.Lines):
        return nullcontext(tell)
    from obuild.cli.turns import Turns  # late: seldom needed

    return Turns(tell, store)


def _secrets(given: list[str]) -> dict[str, bytes]:
    found = {}
    for item in given:
        name, colon, path = item.partition(":")
        if not colon or not name:
            raise UsageError(f"--secret {item} is not ID:FILE")
        found[name] = read_file(Path(path), f"the file {path} of the secret {name!r}")
    return found
