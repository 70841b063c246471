"""The command line: find the module of the command that is called, load it, run it.

What a command needs is imported by it, and no other command is loaded: a fully cached build should cost little
more than starting Python.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Annotated

import typer

from obuild.host import failpoints
from obuild.version import VERSION

#: The modules of `commands`, with the names of the commands in each.
FAMILIES: dict[str, tuple[str, ...]] = {
    "build": ("build", "plan", "healthcheck"),
    "look": ("ls", "log", "explain"),
    "debug": ("shell", "run", "cp"),
    "upkeep": ("delete", "clean", "prune", "gc", "df"),
    "check": ("fsck",),
    "language": ("dockerfile", "fmt"),
}

#: Modules whose commands are called by two words.
GROUPS = ("base", "cache")

app = typer.Typer(
    help="Build virtual-machine images step by step, and only what changed.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def run() -> None:
    """Run the command line and exit."""
    if kill_at := os.environ.get("OBUILD_KILL_AT"):
        failpoints.kill_at(kill_at)
    load(sys.argv[1] if len(sys.argv) > 1 else "")
    app(prog_name="obuild")


def load(name: str) -> None:
    """Load the command `name`, alone; if there is none of that name, all: for the help, or an error."""
    groups = [group for group in GROUPS if group == name]
    families = [family for family, names in FAMILIES.items() if name in names]
    everything = not groups and not families
    for family in FAMILIES if everything else families:
        commands = import_module(f"obuild.cli.commands.{family}").app.registered_commands
        # making the parser of each command costs a cached build a tenth of its time
        app.registered_commands += [each for each in commands if everything or _name(each) == name]
    for group in GROUPS if everything else groups:
        app.add_typer(import_module(f"obuild.cli.commands.{group}").app, name=group)


def _name(command: typer.models.CommandInfo) -> str:
    return command.name or str(getattr(command.callback, "__name__", ""))


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        print(f"obuild {VERSION}")
        raise typer.Exit
