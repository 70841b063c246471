"""Reformat a spec to OBuilder's layout, keeping its comments.

A comment stays with the op, or the field of a `run` or `copy`, on whose line it ends or that follows it. A comment
inside something smaller moves before that. The output parses back to the same Stage, and reformatting it again
changes nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from obuild.errors import UsageError
from obuild.host.fs import replace_bytes
from obuild.spec import Copy, Op, Run, Stage, format_op, parse, without_mark
from obuild.spec.annotate import Annotated, Remark, annotate
from obuild.spec.formatter import format_fields, format_from, format_name, newline
from obuild.spec.sexp import Atom, List, Node


def tidy(text: bytes) -> bytes:
    """Reformat the spec `text`. SpecError if it is not a spec."""
    stage = parse(text)
    return _Printer(annotate(without_mark(text))).spec(stage).encode("utf-8", "surrogateescape")


def rewrite(path: Path, text: bytes) -> None:
    """Replace the content of a file atomically; a symlink is kept, and the file it leads to is replaced."""
    path = path.resolve()
    if not path.is_file():  # such as a pipe, which would be replaced
        raise UsageError(f"{path} is not a regular file", hint="without --write, the spec is printed")
    replace_bytes(path, text, mode=path.stat().st_mode & 0o7777, durable=True)


@dataclass(slots=True)
class _Piece:
    """A build, op or field: its position, and the comments before it, in it, and after it on its line."""

    node: Node
    start: int
    end: int
    before: list[str] = field(default_factory=list)
    inside: list[Remark] = field(default_factory=list)
    after: str = ""

    def line(self, text: str) -> list[str]:
        """The lines of this piece; `text` is the piece without its comments."""
        return [*self.before, f"{text} {self.after}" if self.after else text]


@dataclass(frozen=True, slots=True)
class _Body:
    """A stage without its parentheses; `lead` are the comments before its first item."""

    lead: list[str]
    lines: list[str]
    remark_last: bool


class _Printer:
    def __init__(self, source: Annotated) -> None:
        self.source = source

    def spec(self, stage: Stage) -> str:
        root = self.piece(self.source.node)
        tail = self.place([root], self.grouped())
        body = self.stage(stage, root.node, root.inside, 1)
        root.before += body.lead
        return "\n".join([*root.line(f"({newline(1).join(body.lines)}\n)"), *_texts(tail)]) + "\n"

    def piece(self, node: Node) -> _Piece:
        return _Piece(node, *self.source.span(node))

    def grouped(self) -> list[Remark]:
        """The comments; neighbours on one line are merged."""
        groups: list[Remark] = []
        for remark in self.source.remarks:
            text = remark.text.replace("\r\n", "\n")
            if groups and self.source.text[groups[-1].end : remark.start].strip(" \t\f") == "":
                first = groups.pop()
                groups.append(Remark(f"{first.text} {text}", first.start, remark.end))
            else:
                groups.append(Remark(text, remark.start, remark.end))
        return groups

    def place(self, pieces: Sequence[_Piece], remarks: Iterable[Remark]) -> list[Remark]:
        """Attach each comment to its piece; returns those after the last piece."""
        starts = [piece.start for piece in pieces]
        rest = []
        for remark in remarks:
            index = bisect_right(starts, remark.start)
            last = pieces[index - 1] if index else None
            if last and remark.start < last.end:
                last.inside.append(remark)
            elif last and "\n" not in self.source.text[last.end : remark.start]:
                last.after = f"{last.after} {remark.text}".lstrip()  # a parenthesis separated them
            elif index < len(pieces):
                pieces[index].before.append(remark.text)
            else:
                rest.append(remark)
        return rest

    def stage(self, stage: Stage, node: Node, remarks: Iterable[Remark], column: int) -> _Body:
        """The content of a stage's parentheses."""
        assert isinstance(node, List)
        pieces = [self.piece(item) for item in node.items]
        rest = self.place(pieces, remarks)
        count = len(stage.stages)
        builds, base, ops = pieces[:count], pieces[count], pieces[count + 1 :]
        texts = [
            *(self.build(piece, *build, column) for piece, build in zip(builds, stage.stages, strict=True)),
            format_from(stage.base, column=column),
            *(self.op(piece, op, column) for piece, op in zip(ops, stage.ops, strict=True)),
        ]
        base.before += _texts(base.inside)
        lead, pieces[0].before = pieces[0].before, []
        lines = [line for piece, text in zip(pieces, texts, strict=True) for line in piece.line(text)]
        return _Body(lead, [*lines, *_texts(rest)], bool(rest or pieces[-1].after))

    def build(self, piece: _Piece, name: str, stage: Stage, column: int) -> str:
        """A build; if it ends in a comment, its closing parentheses go on a line of their own."""
        assert isinstance(piece.node, List)
        child = self.piece(piece.node.items[2])
        after = _texts(self.place([child], piece.inside))
        if child.after:
            after.insert(0, child.after)
        inner = column + len("(build ")
        body = self.stage(stage, child.node, child.inside, inner + 1)
        lines = newline(inner + 1).join([*body.lines, *after])
        end = newline(inner) if body.remark_last or after else ""
        head = f"(build {format_name(name, column=inner)}"
        return newline(inner).join([head, *child.before, *body.lead, f"({lines}{end}))"])

    def op(self, piece: _Piece, op: Op, column: int) -> str:
        """An op; a `run` or `copy` with comments at its fields has each field on a line of its own."""
        if not piece.inside or not isinstance(op, Run | Copy):
            piece.before += _texts(piece.inside)
            return format_op(op, column=column)
        head = "(run " if isinstance(op, Run) else "(copy "
        fields = {_head(node): self.piece(node) for node in _fields(piece.node)}
        rest = self.place(list(fields.values()), piece.inside)
        printed = [
            (fields.pop(name), text) for name, text in format_fields(op, column=column + len(head))
        ]  # fields that are left are empty, and not printed
        for empty in fields.values():
            piece.before += [*empty.before, *_texts(empty.inside), *([empty.after] if empty.after else [])]
        piece.before += _texts(rest)
        last, _ = printed[-1]
        if last.after and piece.after:
            piece.before.append(last.after)
        else:
            piece.after = last.after or piece.after
        last.after = ""
        for part, _ in printed:
            part.before += _texts(part.inside)
        if not any(part.before or part.after for part, _ in printed):
            return format_op(op, column=column)
        lines = [line for part, text in printed for line in part.line(text)]
        return f"{head}{newline(column + len(head)).join(lines)})"


def _fields(node: Node) -> Sequence[Node]:
    """The fields of a run or copy; if its name is capitalized, they are in a list of their own."""
    assert isinstance(node, List)
    items = node.items[1:]
    if _head(node)[:1].isupper():
        assert isinstance(items[0], List)
        return items[0].items
    return items


def _head(node: Node) -> str:
    assert isinstance(node, List)
    assert isinstance(node.items[0], Atom)
    return node.items[0].text


def _texts(remarks: Iterable[Remark]) -> list[str]:
    return [remark.text for remark in remarks]
