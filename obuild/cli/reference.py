"""Write docs/cli.md from the commands themselves: python -m obuild.cli.reference >docs/cli.md"""

from __future__ import annotations

import re
from collections.abc import Iterable

from obuild.cli import described, main
from obuild.cli.described import Command, Parameter

INTRODUCTION = f"""\
# The command line

`make reference` generates this page from the program; `obuild COMMAND --help` shows the same text, and so does
`man obuild-COMMAND` where obuild is installed with its manual pages.

{described.EXIT_CODES}
{described.NOTATION}"""


def reference() -> str:
    """Return the text of docs/cli.md."""
    lines = [INTRODUCTION]
    for heading, entries in described.entries().items():
        lines.append(f"## {heading}\n")
        for entry in entries:
            for command in entry.commands:
                lines += _command(command)
    lines.append("## Machine options\n")
    lines.append("`build`, `healthcheck`, `shell`, `run`, `cp` and `export` also take these options.\n")
    lines += _table(described.machine_options())
    lines.append("## Aliases\n")
    lines.append("The help does not list these names: they are OBuilder's, or older ones of obuild.\n")
    lines += ["| alias | meaning |", "|---|---|"]
    lines += [f"| `obuild {alias}` | `obuild {name}` |" for alias, name in main.ALIASES.items()]
    lines += [f"| {_code(f'obuild {name}')} | {_cell(text)} |" for name, text in described.OTHER_ALIASES.items()]
    return "\n".join(lines) + "\n"


def _command(command: Command) -> list[str]:
    lines = [f"### `{command.usage}`\n", command.text, ""]
    if command.on_machine:
        lines.append("Also takes the [machine options](#machine-options).\n")
    return lines + _table([*command.arguments, *command.options])


def _table(parameters: Iterable[Parameter]) -> list[str]:
    rows = [_row(each) for each in parameters]
    return ["| | | default |", "|---|---|---|", *rows, ""] if rows else []


def _row(parameter: Parameter) -> str:
    name = " ".join([", ".join(f"`{each}`" for each in parameter.names), _code(parameter.metavar)])
    default = parameter.default
    if parameter.environment:
        default = f"`{parameter.environment}`, else {default}" if default else f"`{parameter.environment}`"
    return f"| {_cell(name.strip())} | {_cell(parameter.text)} | {default} |"


def _cell(text: str) -> str:
    return re.sub(r"`([^`]*)`", lambda code: _code(code[1]), text).replace("|", "\\|")


def _code(text: str) -> str:
    """Return text as code in a cell. With backticks, some readers of Markdown would show `\\|` for a bar in it."""
    return f"<code>{text.replace('|', '&#124;')}</code>" if "|" in text else f"`{text}`" if text else ""


if __name__ == "__main__":
    print(reference(), end="")
