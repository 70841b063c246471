"""Build a spec, look at what a build would do, see if building works at all."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from obuild.cli import text as ui
from obuild.cli.console import (
    AccelOption,
    ArchOption,
    BootOption,
    BudgetOption,
    CpusOption,
    JsonOption,
    MemoryOption,
    OsOption,
    StoreOption,
    VerboseOption,
    VmOption,
    guarded,
    lines,
    machine_settings,
    open_store,
    parse_bytes,
    put,
    put_json,
    read_file,
    read_spec,
)
from obuild.errors import UsageError

app = typer.Typer()


@app.command()
@guarded
def build(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="The folder that (copy …) takes files from.")],
    store: StoreOption,
    spec: Annotated[str, typer.Option("--file", "-f", metavar="SPEC", help="The spec to build.")],
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
    qemu_accel: AccelOption = "auto",
    qemu_memory: MemoryOption = "",
    qemu_cpus: CpusOption = 2,
    qemu_boot_time: BootOption = 180.0,
    qemu_guest_os: OsOption = "",
    qemu_guest_arch: ArchOption = "",
    vm: VmOption = "auto",
    warm_budget: BudgetOption = "4G",
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
    from obuild.events import Done, Note
    from obuild.spec import parse

    tell = _listener(events)
    with ui.ending(tell):
        stage = parse(read_spec(Path(spec)))
        settings = machine_settings(
            qemu_accel, qemu_memory, qemu_cpus, qemu_boot_time, qemu_guest_os, qemu_guest_arch, vm, warm_budget
        )
        if not Path(source).is_dir():
            raise UsageError(f"there is no source directory {source}")
        reserved = parse_bytes("--reserve", reserve) if reserve else 0
        most = parse_bytes("--max-size", max_size) if max_size else None
        opened = open_store(store, create=True)
        values = _secrets(secret or [])
        builder = engine.Engine(Path(source), opened, settings, tell, values, jobs)
        builder.on_failure = failing.chosen(on_failure, jobs=jobs, say=lambda text: tell(Note(text)))
        if reserve or max_size:
            from obuild.store.quota import Room

            builder.make_room = Room(opened, reserved, most).make
        tell(Done(builder.build(stage)))


def _listener(events: str) -> ui.Lines | ui.JsonLines:
    if events not in ("lines", "json"):
        raise UsageError(f"--events {events}: it can be lines or json")
    return ui.JsonLines(sys.stdout.buffer) if events == "json" else lines()


@app.command()
@guarded
def plan(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="The folder that (copy …) takes files from.")],
    store: StoreOption,
    spec: Annotated[str, typer.Option("--file", "-f", metavar="SPEC", help="The spec to look at.")],
    secret: Annotated[
        list[str] | None,
        typer.Option(metavar="ID[:FILE]", help="As for build; the file is not read. May be repeated."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a build would do, and why; build nothing.

    Each step is `cached`, or a `build` would make it. For a step that is not there, it says in what it differs
    from the nearest layer that is.

    Example: obuild plan --store=qemu:/data -f hello.spec .
    """
    from obuild.builder.preview import forecast
    from obuild.spec import parse

    stage = parse(read_spec(Path(spec)))
    if not Path(source).is_dir():
        raise UsageError(f"there is no source directory {source}")
    names = [item.partition(":")[0] for item in secret or []]
    if "" in names:
        raise UsageError("--secret takes an ID, or ID:FILE")
    steps = forecast(stage, source=Path(source), store=open_store(store), secrets=names)
    if as_json:
        put_json(steps)
    else:
        put(*ui.outlook(steps))


def _secrets(given: list[str]) -> dict[str, bytes]:
    found = {}
    for item in given:
        name, colon, path = item.partition(":")
        if not colon or not name:
            raise UsageError(f"--secret {item} is not ID:FILE")
        found[name] = read_file(Path(path), f"the file {path} of the secret {name!r}")
    return found


@app.command()
@guarded
def healthcheck(
    store: StoreOption,
    base: Annotated[str, typer.Option(metavar="NAME", help="The base image to try.")] = "micro",
    qemu_accel: AccelOption = "auto",
    qemu_memory: MemoryOption = "",
    qemu_cpus: CpusOption = 2,
    qemu_boot_time: BootOption = 180.0,
    qemu_guest_os: OsOption = "",
    qemu_guest_arch: ArchOption = "",
    verbose: VerboseOption = False,
) -> None:
    """Boot a guest, run a command in it, shut it down: does everything work here?"""
    from dataclasses import replace

    from obuild.builder import engine

    settings = machine_settings(qemu_accel, qemu_memory, qemu_cpus, qemu_boot_time, qemu_guest_os, qemu_guest_arch)
    settings = replace(settings, vm="boot")
    engine.healthcheck(open_store(store, create=True), base_name=base, settings=settings, tell=lines())
    print("Healthcheck passed")
