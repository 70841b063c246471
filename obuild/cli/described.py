"""The commands and options, as the program itself describes them: for docs/cli.md and the manual pages."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import typer.main

from obuild.cli import main
from obuild.cli.options import Machine

#: The parameters described once for all commands.
_SHARED = {field.name for field in fields(Machine)}

_DEFAULT = re.compile(r" ?\[default: (.*)\]$")

EXIT_CODES = """\
Exit codes: 0, success; 1, a step or an action failed; 2, an error was found before anything was built or changed;
130, interrupted. `shell` and `run` exit with the status of the command that ran.
"""

NOTATION = """\
ID is a layer's id, its first digits, or a tag. SIZE is a number of bytes, or a size like `512M` or `1.5G`.
"""

#: Aliases that are more than another name of a command.
OTHER_ALIASES = {
    "clean": "`obuild prune --all`, with OBuilder's output; exits with 1 if a layer is in use",
    "prune --before WHEN [--limit N]": "remove at most N layers not used since WHEN, a date or a time span ago",
    "build --events lines|json": "`obuild build --progress plain|json`",
}


@dataclass(frozen=True, slots=True)
class Parameter:
    """An argument, or an option with its names, the shortest first.

    `metavar` is empty for a flag, `default` for nothing worth mentioning.
    """

    names: tuple[str, ...]
    metavar: str
    text: str
    default: str
    environment: str


@dataclass(frozen=True, slots=True)
class Command:
    """A command. `path` is its name without the program's: `tag ls`."""

    path: str
    text: str
    arguments: tuple[Parameter, ...]
    options: tuple[Parameter, ...]
    on_machine: bool

    @property
    def usage(self) -> str:
        return " ".join([f"obuild {self.path}", "[OPTIONS]", *(each.metavar for each in self.arguments)])


@dataclass(frozen=True, slots=True)
class Entry:
    """What `obuild --help` lists under one name: a command, or a group of them. `text` is its help."""

    name: str
    text: str
    commands: tuple[Command, ...]


def entries() -> dict[str, list[Entry]]:
    """Return everything that the help lists, under its headings."""
    commands = _commands()
    return {
        heading: [Entry(name, _text(commands[name]), tuple(_leaves(name, commands[name]))) for name in names]
        for heading, names in main.HELP.items()
    }


def machine_options() -> tuple[Parameter, ...]:
    """Return the options of all commands that start machines."""
    return tuple(_parameter(each) for each in _commands()["shell"].params if each.name in _SHARED)


def _commands() -> dict[str, Any]:
    if not main.app.registered_commands:
        main.load("")
    return typer.main.get_command(main.app).commands  # type: ignore[attr-defined, no-any-return]


def _leaves(path: str, command: Any) -> Iterator[Command]:
    """Yield a command, or the commands of a group."""
    if not hasattr(command, "commands"):
        yield _command(path, command)
    for name, inner in getattr(command, "commands", {}).items():
        yield from _leaves(f"{path} {name}", inner)


def _text(command: Any) -> str:
    return inspect.cleandoc(command.help or "")


def _command(path: str, command: Any) -> Command:
    shown = [each for each in command.params if not getattr(each, "hidden", False) and each.name != "help"]
    own = [each for each in shown if each.name not in _SHARED]
    return Command(
        path,
        _text(command),
        tuple(_parameter(each) for each in own if each.param_type_name == "argument"),
        tuple(_parameter(each) for each in own if each.param_type_name == "option"),
        on_machine=len(own) != len(shown),
    )


def _parameter(parameter: Any) -> Parameter:
    text = parameter.help or ""
    default = ""
    if found := _DEFAULT.search(text):
        text, default = text[: found.start()], found[1]
    elif parameter.default not in (None, "", False, []) and not parameter.required:
        default = f"{parameter.default:g}" if isinstance(parameter.default, float) else str(parameter.default)
    is_argument = parameter.param_type_name == "argument"
    if parameter.required and not is_argument:
        default = "required"
    metavar = str(parameter.metavar or "")
    return Parameter(
        () if is_argument else tuple(sorted((*parameter.opts, *parameter.secondary_opts), key=len)),
        metavar or (str(parameter.name).upper() if is_argument else ""),
        text,
        default,
        str(getattr(parameter, "envvar", None) or ""),
    )
