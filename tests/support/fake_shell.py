"""A shell for scripted guests: a dozen commands that work as in a real one.

It has what executors/test_conformance.py says to every executor: `;`, `echo` with `>FILE` and `>&2`, `cat`, `pwd`,
`id -u`, `id -g`, `printenv`, `exit`; and `reach`, which stands for any way to get at a network.
"""

from __future__ import annotations

import shlex
from io import BytesIO

from tests.support.fakes import Act, Run, packed, unpacked


class Shell(dict[str, Act]):
    """A script for FakeExecutor that runs every command."""

    def get(self, text: str, default: object = None) -> Act:
        return interpret


def interpret(run: Run) -> int:
    """Run the text of a command, with its caches and secrets at their targets."""
    caches = list(zip(run.command.caches, run.caches, strict=True))
    for cache, archive in caches:
        if archive.exists():
            run.files.update(unpacked(BytesIO(archive.read_bytes()), cache.target))
    for secret in run.command.secrets:
        run.files[secret.target] = run.secrets[secret.name]
    status = 0
    for line in run.command.argv[-1].split(";"):
        words = shlex.split(line)
        if words[0] == "exit":
            status = int(words[1])
            break
        status = _run(run, words)
    for secret in run.command.secrets:
        del run.files[secret.target]
    for cache, archive in caches:
        inside = [path for path in run.files if path.startswith(f"{cache.target}/")]
        files = {path.removeprefix(f"{cache.target}/"): run.files.pop(path) for path in inside}
        run.new(archive).write_bytes(packed(files))
    return status


def _run(run: Run, words: list[str]) -> int:
    match words:
        case ["echo", *rest, to] if to.startswith(">") and to != ">&2":
            run.files[_path(run, to[1:])] = _line(*rest)
        case ["echo", *rest]:
            run.output(_line(*(word for word in rest if word != ">&2")))
        case ["cat", name] if (path := _path(run, name)) in run.files:
            run.output(run.files[path])
        case ["pwd"]:
            run.output(_line(run.command.cwd))
        case ["id", option]:
            run.output(_line(str(getattr(run.command.user, {"-u": "uid", "-g": "gid"}[option]))))
        case ["printenv", name] if name in dict(run.command.env):
            run.output(_line(dict(run.command.env)[name]))
        case ["reach"] if run.command.network:
            run.output(_line("reached"))
        case _:
            return 1
    return 0


def _path(run: Run, name: str) -> str:
    return name if name.startswith("/") else f"{run.command.cwd.rstrip('/')}/{name}"


def _line(*words: str) -> bytes:
    return f"{' '.join(words)}\n".encode()
