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

#: The module of `commands` for each command. Most are named alike.
COMMANDS: dict[str, str] = {
    "build": "build",
    "plan": "plan",
    "healthcheck": "healthcheck",
    "ls": "ls",
    "log": "logs",
    "explain": "inspect",
    "shell": "shell",
    "run": "run",
    "cp": "cp",
    "delete": "rm",
    "clean": "rm",
    "prune": "prune",
    "gc": "prune",
    "df": "df",
    "fsck": "fsck",
    "dockerfile": "dockerfile",
    "fmt": "fmt",
}

#: Modules whose commands are called by two words.
GROUPS = ("base", "cache", "tag")

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
    if name in COMMANDS:
        app.registered_commands.append(_command(name))
    elif name in GROUPS:
        _add_group(name)
    else:
        app.registered_commands += map(_command, COMMANDS)
        for group in GROUPS:
            _add_group(group)


def _command(name: str) -> typer.models.CommandInfo:
    """A command that is called by one word. Making the parser of each costs a cached build a tenth of its time."""
    module: typer.Typer = import_module(f"obuild.cli.commands.{COMMANDS[name]}").app
    return next(each for each in module.registered_commands if name == (each.name or _word(each)))


def _word(command: typer.models.CommandInfo) -> str:
    return str(getattr(command.callback, "__name__", ""))


def _add_group(name: str) -> None:
    app.add_typer(import_module(f"obuild.cli.commands.{name}").app, name=name)


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        print(f"obuild {VERSION}")
        raise typer.Exit
