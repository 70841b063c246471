"""The command line: find the module of the command, load it, run it.

Only the called command is loaded, and it imports only what it needs: a fully cached build should cost little more
than starting Python.
"""

from __future__ import annotations

import os
import sys
from copy import copy
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.models import CommandInfo

from obuild.host import failpoints
from obuild.version import VERSION

#: The commands in the order of the help. Each is a module in `commands`.
HELP: dict[str, tuple[str, ...]] = {
    "Build": ("build", "plan", "fmt", "dockerfile", "healthcheck", "doctor"),
    "Look": ("ls", "logs", "inspect", "history", "report", "watch", "shell", "run", "cp"),
    "Store": ("tag", "rm", "prune", "df", "fsck", "cache"),
    "Images": ("base", "export", "publish", "sbom", "diff"),
    "Share": ("push", "pull", "remote", "key", "worker"),
}

#: Commands of two words, such as `tag ls`.
GROUPS = ("tag", "cache", "base", "remote", "key")

#: Aliases, which the help omits: OBuilder's names, and older ones of obuild.
ALIASES = {"log": "logs", "explain": "inspect", "delete": "rm", "gc": "prune"}

#: Commands that the help omits, with the modules they are in.
HIDDEN = {"clean": "rm"}

COMMANDS = tuple(name for names in HELP.values() for name in names)


class _Grouped(TyperGroup):
    """A group whose help lists the commands under headings."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        width = max(map(len, COMMANDS))
        for heading, names in HELP.items():
            with formatter.section(heading):
                shown = [(name, self.commands[name]) for name in names if name in self.commands]
                limit = formatter.width - 6 - width
                formatter.write_dl([(name.ljust(width), each.get_short_help_str(limit)) for name, each in shown])


app = typer.Typer(
    cls=_Grouped,
    help="Build virtual-machine images step by step, and rebuild only what changed.",
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
    """Load only the command `name`. If there is no such command, load all, for the help or an error message."""
    known = (*COMMANDS, *ALIASES, *HIDDEN)
    for each in (name,) if name in known else known:
        if each in GROUPS:
            app.add_typer(_module(each), name=each)
        else:
            app.registered_commands.append(_command(each))


def _command(name: str) -> CommandInfo:
    """Return a command of one word. Making the parsers of all commands costs a tenth of a cached build's time."""
    target = ALIASES.get(name, name)
    found = next(each for each in _module(HIDDEN.get(target, target)).registered_commands if target == _word(each))
    found = copy(found)
    found.name, found.hidden = name, name not in COMMANDS
    return found


def _module(name: str) -> typer.Typer:
    module: typer.Typer = import_module(f"obuild.cli.commands.{name}").app
    return module


def _word(command: CommandInfo) -> str:
    return command.name or str(getattr(command.callback, "__name__", ""))


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        print(f"obuild {VERSION}")
        raise typer.Exit
