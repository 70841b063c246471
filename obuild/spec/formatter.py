"""Print a Stage in OBuilder's layout: one op per line, fields below each other.

The output parses back to the same Stage. `column` is where a function's output will start on its line.
"""

from __future__ import annotations

from collections.abc import Iterable

from obuild.spec import sexp
from obuild.spec.ops import (
    Cache,
    Comment,
    Copy,
    Env,
    Op,
    Run,
    Secret,
    Shell,
    Stage,
    UnixUser,
    User,
    WindowsUser,
    Workdir,
)
from obuild.spec.sexp import Sexp

#: The line width of OCaml's Format, and its largest indentation.
_WIDTH = 80
_MAX_INDENT = 68


def format(stage: Stage) -> str:
    """`stage` as a spec, without a final newline."""
    return f"({_lines(stage, 1)}\n)"


def format_op(op: Op, *, column: int = 0) -> str:
    """One op, for a line that already has `column` characters."""
    return _op(_op_sexp(op), column)


def format_from(base: str, *, column: int = 0) -> str:
    """The `(from …)` of a stage."""
    return _op(("from", base), column)


def format_name(name: str, *, column: int) -> str:
    """The name of a build."""
    return _word(name, column)


def format_fields(op: Run | Copy, *, column: int) -> list[tuple[str, str]]:
    """The name and the text of each field, for printing each on a line of its own."""
    return [(str(field[0]), _one_line(field, column)) for field in _op_sexp(op)[1:]]


def newline(column: int) -> str:
    """A newline and the indentation of the next line."""
    return "\n" + " " * min(column, _MAX_INDENT)


def _lines(stage: Stage, column: int) -> str:
    builds = [_build(name, child, column) for name, child in stage.stages]
    ops = [("from", stage.base), *map(_op_sexp, stage.ops)]
    return newline(column).join([*builds, *(_op(op, column) for op in ops)])


def _build(name: str, stage: Stage, column: int) -> str:
    inner = column + len("(build ")
    return f"(build {_word(name, inner)}{newline(inner)}({_lines(stage, inner + 1)}))"


def _op(op: tuple[Sexp, ...], column: int) -> str:
    inner = column + len(f"({op[0]} ")
    if op[0] == "run":
        return f"(run {newline(inner).join(_one_line(arg, inner) for arg in op[1:])})"
    if op[0] == "copy" and inner + _width(op[1:]) >= _WIDTH:
        return f"(copy {newline(inner).join(_one_line(arg, inner) for arg in op[1:])})"
    return _one_line(op, column)


def _width(items: Iterable[Sexp]) -> int:
    return sum(len(text) - text.count("\n") + 1 for text in (_one_line(item, 0) for item in items)) - 1


def _one_line(item: Sexp, column: int) -> str:
    """`item` with single spaces; only a multi-line word breaks the line."""
    if isinstance(item, str):
        return _word(item, column)
    text = "("
    for index, part in enumerate(item):
        text += " " if index else ""
        text += _one_line(part, _end(text, column))
    return text + ")"


def _end(text: str, column: int) -> int:
    """The column after `text`, which starts at `column`."""
    newline = text.rfind("\n")
    return column + len(text) if newline < 0 else len(text) - newline - 1


def _word(word: str, column: int) -> str:
    first = word.find("\n")
    if first in (-1, len(word) - 1):
        return sexp.quote(word)
    # Lines end in a backslash and continue with `\\n`; the space before the quote aligns them.
    between = "\\" + newline(column) + "\\n"
    return f' "{between.join(map(sexp.escape, word.split(chr(10))))}"'


def _op_sexp(op: Op) -> tuple[Sexp, ...]:
    match op:
        case Run():
            return _run_sexp(op)
        case Copy():
            return _copy_sexp(op)
        case Env(name, value):
            return ("env", name, value)
        case Workdir(path):
            return ("workdir", path)
        case User(UnixUser(uid, gid)):
            return ("user", ("uid", str(uid)), ("gid", str(gid)))
        case User(WindowsUser(name)):
            return ("user", ("name", name))
        case User():
            raise TypeError(f"{op.user!r} is not a user")
        case Shell(argv):
            return ("shell", *argv)
        case Comment(text):
            return ("comment", text)


def _run_sexp(run: Run) -> tuple[Sexp, ...]:
    return (
        "run",
        *_field("cache", map(_mount_sexp, run.caches)),
        *_field("network", run.network),
        *_field("secrets", map(_mount_sexp, run.secrets)),
        ("shell", run.shell),
    )


def _copy_sexp(copy: Copy) -> tuple[Sexp, ...]:
    return (
        "copy",
        *((("from", ("build", copy.origin)),) if copy.origin is not None else ()),
        ("src", *copy.src),
        ("dst", copy.dst),
        *_field("exclude", copy.exclude),
    )


def _mount_sexp(mount: Cache | Secret) -> Sexp:
    options = (("buildkit_options", mount.buildkit_options),) if mount.buildkit_options else ()
    return (mount.name, ("target", mount.target), *options)


def _field(name: str, items: Iterable[Sexp]) -> tuple[Sexp, ...]:
    """The field `(NAME ITEM…)`; empty if there are no items."""
    field = (name, *items)
    return (field,) if len(field) > 1 else ()
