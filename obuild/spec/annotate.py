"""S-expressions with what `sexp.parse` leaves out, for reformatting: comments, and where each node ends."""

from __future__ import annotations

import re
from dataclasses import dataclass

from obuild.spec.sexp import Node, Reader, decoded

_LINE_COMMENT = re.compile(r";[^\r\n]*")


@dataclass(frozen=True, slots=True)
class Remark:
    """A comment as written, and its position: characters `start` up to `end`."""

    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Annotated:
    """A node with what `parse` leaves out: the comments, and where each node ends."""

    text: str
    node: Node
    remarks: tuple[Remark, ...]
    _spans: dict[tuple[int, int], tuple[int, int]]

    def span(self, node: Node) -> tuple[int, int]:
        """The range of `text` that a node occupies."""
        return self._spans[node.line, node.column]


def annotate(text: str | bytes) -> Annotated:
    """Like `parse`, for reformatting: it keeps the comments."""
    reader = _Annotator(decoded(text))
    node: Node = reader.parse()
    return Annotated(reader.string, node, reader.outermost(), reader.spans)


class _Annotator(Reader):
    """Also records the comments, and where nodes begin and end."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.remarks: list[tuple[int, int]] = []
        self.spans: dict[tuple[int, int], tuple[int, int]] = {}

    def outermost(self) -> tuple[Remark, ...]:
        """The outermost comments, in order."""
        found: list[Remark] = []
        for start, end in sorted(self.remarks):
            if not found or start >= found[-1].end:
                found.append(Remark(self.string[start:end].rstrip(), start, end))
        return tuple(found)

    def _skip_blank(self) -> bool:
        start = self.at
        more = super()._skip_blank()
        for found in _LINE_COMMENT.finditer(self.string, start, self.at):
            self.remarks.append(found.span())
        return more

    def _skip_comment(self) -> None:
        start = self.at
        super()._skip_comment()
        self.remarks.append((start, self.at))

    def _add(self, node: Node) -> None:
        skips = self.stack[-1].skips
        if skips:  # `#;` and what it drops are one comment
            self.remarks.append((skips[-1], self.at))
        self.spans[node.line, node.column] = (self.lines[node.line - 1] + node.column - 1, self.at)
        super()._add(node)
