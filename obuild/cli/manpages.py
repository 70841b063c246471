"""Write the manual pages obuild.1 and obuild-COMMAND.1 from the commands themselves.

    python -m obuild.cli.manpages FOLDER

The build of the wheel calls this (hatch_build.py). The pages are in the language of man(7), in ASCII.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

from obuild.cli import described, main
from obuild.cli.described import Command, Entry, Parameter
from obuild.version import VERSION

_ESCAPES = {"\\": "\\e", "-": "\\-", "~": "\\(ti", "^": "\\(ha", "`": "\\(ga", "'": "\\(aq"}

_EXAMPLE = re.compile(r"^Example: (.*)$", re.MULTILINE)

#: All environment variables that obuild reads, except those of other programs' libraries.
ENVIRONMENT = {
    "OBUILD_STORE": "The default of `--store`.",
    "OBUILD_REMOTE": "Remotes for all builds, with spaces between them: the default of `obuild build --remote`.",
    "OBUILD_FARM": "The scheduler of a farm: the default of `build --farm` and `worker --scheduler`.",
    "OBUILD_TLS": "The folder with the certificates for that scheduler: the default of `--tls`.",
    "XDG_DATA_HOME": "Else, the store is `$XDG_DATA_HOME/obuild`. [default: ~/.local/share]",
    "COSIGN_PASSWORD": "The password of a key for `--sign`. Without it, obuild asks.",
    "DOCKER_CONFIG": "The folder of docker's config.json, with the logins of registries. [default: ~/.docker]",
}


def pages() -> dict[str, str]:
    """Return the text of each manual page by the name of its file."""
    groups = described.entries()
    entries = [entry for found in groups.values() for entry in found]
    written = {f"obuild-{entry.name}.1": _page(entry) for entry in entries}
    return {"obuild.1": _overview(groups), **written}


def _overview(groups: dict[str, list[Entry]]) -> str:
    lines = [*_start("obuild", str(main.app.info.help)), ".SH SYNOPSIS"]
    lines += [f"{_bold('obuild')} {_italic('COMMAND')} [{_italic('OPTIONS')}] \\&...", ".SH DESCRIPTION"]
    lines += _paragraphs(
        "A spec names a base image and a list of steps. Each step runs in a virtual machine, and its result is a "
        "layer in a store, named by the hash of everything that went into it. So a build runs only the steps that "
        "have changed.\n\n" + described.NOTATION
    )
    lines.append(".SH COMMANDS")
    for heading, entries in groups.items():
        lines.append(f".SS {heading}")
        for entry in entries:
            lines += [".TP", f"{_bold(f'obuild-{entry.name}')}(1)", _text(entry.text.split("\n\n")[0])]
    lines.append(".SH ENVIRONMENT")
    for name, text in ENVIRONMENT.items():
        lines += [".TP", _bold(name), _text(text)]
    lines += [".SH EXIT STATUS", *_paragraphs(described.EXIT_CODES)]
    return "\n".join(lines) + "\n"


def _page(entry: Entry) -> str:
    lines = [*_start(f"obuild-{entry.name}", entry.text.split("\n\n")[0]), ".SH SYNOPSIS"]
    for number, command in enumerate(entry.commands):
        lines += [".br"] * bool(number) + [_usage(command)]
    single = len(entry.commands) == 1 and entry.commands[0].path == entry.name
    lines.append(".SH DESCRIPTION")
    if single:
        lines += _described(entry.commands[0], ".SH")
    else:
        lines += _paragraphs(entry.text)
        lines.append(".SH COMMANDS")
        for command in entry.commands:
            lines += [f".SS obuild {_text(command.path)}", *_described(command, "")]
    if any(command.on_machine for command in entry.commands):
        lines += [".SH MACHINE OPTIONS", *_list(described.machine_options())]
    lines += [".SH EXIT STATUS", *_paragraphs(described.EXIT_CODES), ".SH SEE ALSO", f"{_bold('obuild')}(1)"]
    return "\n".join(lines) + "\n"


def _described(command: Command, section: str) -> Iterator[str]:
    """Yield what a command does and takes; `section` is the macro of its headings, if it has any."""
    examples = _EXAMPLE.findall(command.text)
    yield from _paragraphs(_EXAMPLE.sub("", command.text))
    for heading, parameters in (("ARGUMENTS", command.arguments), ("OPTIONS", command.options)):
        if parameters:
            yield from [f"{section} {heading}"] * bool(section)
            yield from _list(parameters)
    if examples:
        yield from [f"{section} EXAMPLES"] if section else (".PP", "Example:")
        yield from (".EX", *map(_text, examples), ".EE")


def _start(name: str, summary: str) -> list[str]:
    summary = " ".join(summary.split()).removesuffix(".")
    return [
        '.\\" Written by obuild.cli.manpages from the commands themselves.',
        f'.TH {_text(name.upper())} 1 "" "obuild {VERSION}" "obuild"',
        ".SH NAME",
        f"{_text(name)} \\- {_text(summary[:1].lower() + summary[1:])}",
    ]


def _usage(command: Command) -> str:
    words = [_bold(f"obuild {command.path}"), f"[{_italic('OPTIONS')}]"]
    return " ".join([*words, *(_italic(each.metavar) for each in command.arguments)])


def _list(parameters: Iterable[Parameter]) -> Iterator[str]:
    for each in parameters:
        names = ", ".join(map(_bold, each.names))
        default = f" [default: {each.default}]" if each.default else ""
        environment = f" [environment: {each.environment}]" if each.environment else ""
        yield ".TP"
        yield f"{names} {_italic(each.metavar)}".strip() if each.metavar else names
        yield _text(f"{each.text}{default}{environment}".strip() or "\\&")


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\n+", text.strip()):
        if paragraph:
            yield ".PP"
            yield from map(_text, textwrap.wrap(" ".join(paragraph.split()), 100))


def _bold(text: str) -> str:
    return f"\\fB{_escaped(text)}\\fR"


def _italic(text: str) -> str:
    return f"\\fI{_escaped(text)}\\fR"


def _text(text: str) -> str:
    """Return a line of text: what is between backticks is bold, and nothing in it is a request."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        parts = [text]
    line = "".join(_bold(part) if number % 2 else _escaped(part) for number, part in enumerate(parts))
    return f"\\&{line}" if line.startswith((".", "\\(aq")) else line


def _escaped(text: str) -> str:
    return "".join(_ESCAPES.get(each) or (each if each.isascii() else f"\\[u{ord(each):04X}]") for each in text)


def write(folder: Path) -> None:
    """Write all pages into `folder`, which may exist."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="ascii")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
