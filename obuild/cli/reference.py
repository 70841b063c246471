"""Write docs/cli.md from the commands themselves: python -m obuild.cli.reference >docs/cli.md"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import typer.main

from obuild.cli import main
from obuild.cli.options import Machine

#: The parameters described once for all commands.
_SHARED = {field.name for field in fields(Machine)}

_DEFAULT = re.compile(r" ?\[default: (.*)\]$")

INTRODUCTION = """\
# The command line

`make docs` generates this page from the program; `obuild COMMAND --help` shows the same text.

Exit codes: 0, success; 1, a step or an action failed; 2, an error was found before anything was built or changed;
130, interrupted. `shell` and `run` exit with the status of the command that ran.

ID is a layer's id, its first digits, or a tag. SIZE is a number of bytes, or a size like `512M` or `1.5G`.
"""


#: Aliases that are more than another name of a command.
OTHERS = {
    "clean": "`obuild prune --all`, with OBuilder's output; exits with 1 if a layer is in use",
    "prune --before WHEN [--limit N]": "remove at most N layers not used since WHEN, a date or a time span ago",
    "build --events lines\\|json": "`obuild build --progress plain\\|json`",
}


def reference() -> str:
    """Return the text of docs/cli.md."""
    main.load("")
    commands: dict[str, Any] = typer.main.get_command(main.app).commands  # type: ignore[attr-defined]
    lines = [INTRODUCTION]
    for heading, names in main.HELP.items():
        lines.append(f"## {heading}\n")
        for name in names:
            for path, command in _leaves(name, commands[name]):
                lines += _command(path, command)
    lines.append("## Machine options\n")
    lines.append("`build`, `healthcheck`, `shell`, `run`, `cp` and `export` also take these options.\n")
    lines += _table([each for each in commands["shell"].params if each.name in _SHARED])
    lines.append("## Aliases\n")
    lines.append("The help does not list these names: they are OBuilder's, or older ones of obuild.\n")
    lines += ["| alias | meaning |", "|---|---|"]
    lines += [f"| `obuild {alias}` | `obuild {name}` |" for alias, name in main.ALIASES.items()]
    lines += [f"| `obuild {name}` | {text} |" for name, text in OTHERS.items()]
    return "\n".join(lines) + "\n"


def _leaves(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Yield a command, or the commands of a group."""
    if not hasattr(command, "commands"):
        yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from _leaves(f"{path} {name}", inner)


def _command(path: str, command: Any) -> list[str]:
    shown = [each for each in command.params if not getattr(each, "hidden", False) and each.name != "help"]
    arguments = [each for each in shown if each.param_type_name == "argument"]
    options = [each for each in shown if each.param_type_name == "option" and each.name not in _SHARED]
    usage = " ".join([f"obuild {path}", "[OPTIONS]", *(_metavar(each) for each in arguments)])
    lines = [f"### `{usage}`\n", inspect.cleandoc(command.help or ""), ""]
    if len(options) + len(arguments) != len(shown):
        lines.append("Also takes the [machine options](#machine-options).\n")
    return lines + _table([*arguments, *options])


def _table(parameters: list[Any]) -> list[str]:
    rows = [_row(each) for each in parameters]
    return ["| | | default |", "|---|---|---|", *rows, ""] if rows else []


def _row(parameter: Any) -> str:
    text = parameter.help or ""
    default = ""
    if found := _DEFAULT.search(text):
        text, default = text[: found.start()], found[1]
    elif parameter.default not in (None, "", False, []) and not parameter.required:
        default = f"{parameter.default:g}" if isinstance(parameter.default, float) else str(parameter.default)
    if parameter.required and parameter.param_type_name == "option":
        default = "required"
    if parameter.param_type_name == "argument":
        name = f"`{_metavar(parameter)}`"
    else:
        names = sorted((*parameter.opts, *parameter.secondary_opts), key=len)
        name = ", ".join(f"`{each}`" for each in names)
        name += f" `{_metavar(parameter)}`" if parameter.metavar else ""
    if getattr(parameter, "envvar", None):
        default = f"`{parameter.envvar}`, else {default}"
    return f"| {name.replace('|', chr(92) + '|')} | {text.replace('|', chr(92) + '|')} | {default} |"


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


if __name__ == "__main__":
    print(reference(), end="")
