"""S-expressions, parsed and printed byte for byte as OCaml's sexplib does.

An atom is a plain str that keeps its text (`007` and `nil` are words), and a list is a tuple. OCaml's
strings are bytes: text is UTF-8, and bytes that are not become surrogate escapes.

sexpdata's Parser reads the atoms. Its other rules differ from sexplib's (it turns words into numbers,
knows `'x`, `[x]` and fewer escapes, recurses and keeps no positions), so they are implemented here.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from typing import NamedTuple, TypeAlias

import sexpdata

from obuild.errors import SpecError

Sexp: TypeAlias = "str | tuple[Sexp, ...]"
Node: TypeAlias = "Atom | List"

#: What may separate two s-expressions, except `#;` and `#| |#`.
_BLANK = re.compile(r"(?:[ \t\n\f]++|\r\n|;[^\r\n]*+)*+")
_ATOM_ENDS = ' \t\n\f\r"();'
_ATOM_END = re.compile(r'[ \t\n\f\r"();]')
_COMMENT_IN_ATOM = re.compile(r"#\||\|#")
_BLOCK = re.compile(r'#\||\|#|"')
_STRING = re.compile(r'"((?:[^"\\]++|\\.)*+)"', re.DOTALL)
_ESCAPE = re.compile(r"\\(\r?\n[ \t]*|[0-9]{1,3}|x[0-9a-fA-F]{0,2}|.)", re.DOTALL)
_LETTERS = {"n": "\n", "r": "\r", "b": "\b", "t": "\t", "\\": "\\", "'": "'", '"': '"', "\r": "\r"}

_MUST_QUOTE = re.compile(r'[^!-~]|["();\\]|#\||\|#')
_MUST_ESCAPE = re.compile(rb'[^ -~]|["\\]')
_ESCAPES = {b"\n": b"\\n", b"\r": b"\\r", b"\b": b"\\b", b"\t": b"\\t", b"\\": b"\\\\", b'"': b'\\"'}


class Atom(NamedTuple):
    """A word and its position; lines and columns count from 1."""

    text: str
    line: int
    column: int


class List(NamedTuple):
    """A list and the position of its opening parenthesis."""

    items: tuple[Node, ...]
    line: int
    column: int


def loads(text: str | bytes) -> Sexp:
    """The one s-expression in `text`. SpecError if there is none, or more, or it is malformed."""
    return plain(parse(text))


def parse(text: str | bytes) -> Node:
    """Like `loads`, but every atom and list has its position."""
    node: Node = Reader(decoded(text)).parse()
    return node


def plain(node: Node) -> Sexp:
    """`node` without its positions."""
    done: list[list[Sexp]] = [[]]
    todo: list[Node | None] = [node]
    while todo:
        item = todo.pop()
        if item is None:
            items = tuple(done.pop())
            done[-1].append(items)
        elif isinstance(item, Atom):
            done[-1].append(item.text)
        else:
            done.append([])
            todo.append(None)
            todo.extend(reversed(item.items))
    return done[0][0]


def dumps(sexp: Sexp) -> str:
    """`sexp` in sexplib's machine form: one line of ASCII with the fewest spaces and quotes."""
    out: list[str] = []
    todo: list[Sexp | None] = [sexp]
    after_bare = False
    while todo:
        item = todo.pop()
        if isinstance(item, str):
            text = quote(item)
            bare = text is item
            out.append(" " + text if bare and after_bare else text)
            after_bare = bare
            continue
        after_bare = False
        if item is None:
            out.append(")")
        else:
            out.append("(")
            todo.append(None)
            todo.extend(reversed(item))
    return "".join(out)


def quote(atom: str) -> str:
    """`atom` as it is written: as it is if that parses back, else in quotes."""
    return f'"{escape(atom)}"' if not atom or _MUST_QUOTE.search(atom) else atom


def escape(text: str) -> str:
    """`text` as written between quotes: printable ASCII, other bytes as `\\ddd`."""
    data = text.encode("utf-8", "surrogateescape")
    return _MUST_ESCAPE.sub(_escaped, data).decode("ascii")


def _escaped(match: re.Match[bytes]) -> bytes:
    return _ESCAPES.get(match[0]) or b"\\%03d" % ord(match[0])


def decoded(text: str | bytes) -> str:
    if isinstance(text, str):
        if text.isascii():
            return text
        # Each string of bytes has one representation: escaped bytes that form a character become it.
        text = _encode(text)
    return text.decode("utf-8", "surrogateescape")


def _encode(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise SpecError(f"character {error.start + 1} is half of a surrogate pair, not text") from error


class _Frame:
    """A list being read: where it opened, its items, and each `#;` that is still to drop an item."""

    __slots__ = ("items", "skips", "start")

    def __init__(self, start: int) -> None:
        self.start = start
        self.items: list[Node] = []
        self.skips: list[int] = []


class Reader(sexpdata.Parser):  # type: ignore[misc]  # sexpdata is not typed
    """Reads `string` once, from left to right. The stack is a list, so nesting has no limit."""

    string: str

    def __init__(self, text: str) -> None:
        super().__init__(text)
        # parse_atom only needs to know what ends an atom. A backslash is a letter here.
        self.atom_end = set(_ATOM_ENDS)
        self.atom_end_or_escape_re = _ATOM_END
        self.at = 0
        self.end = 0  # of the first s-expression outside all lists
        self.stack = [_Frame(0)]
        self.lines = [0, *(found.end() for found in re.finditer("\n", text))]

    def parse(self) -> Node:
        while self._skip_blank():
            self._read(self.string[self.at])
        return self._finish()

    def atom(self, token: str, *_: object) -> str:
        return token

    def _skip_blank(self) -> bool:
        found = _BLANK.match(self.string, self.at)
        assert found is not None  # it also matches the empty string
        self.at = found.end()
        return self.at < len(self.string)

    def _read(self, char: str) -> None:
        start = self.at
        if char == "(":
            self.stack.append(_Frame(start))
            self.at += 1
        elif char == ")":
            self._close()
        elif char == '"':
            self._add(Atom(self._quoted(), *self._where(start)))
        elif char == "\r":
            raise self._error(start, "a carriage return without a newline", "end lines with LF or CR LF")
        elif self.string.startswith("#;", start):
            self.stack[-1].skips.append(start)
            self.at += 2
        elif self.string.startswith("#|", start):
            self._skip_comment()
        else:
            self._bare()

    def _bare(self) -> None:
        start = self.at
        self.at, text = self.parse_atom(start)
        if found := _COMMENT_IN_ATOM.search(text):
            where = start + found.start()
            raise self._error(where, f'"{found[0]}" in the middle of a word', "put the word in quotes")
        if self.at == len(self.string) and len(self.stack) == 1 and self.stack[0].skips:
            # sexplib does not find the end of this word, so the comment is unfinished for it.
            raise self._error(start, "the last word is commented out by #;", "end the file with a newline")
        self._add(Atom(text, *self._where(start)))

    def _close(self) -> None:
        if len(self.stack) == 1:
            hint = self._first_end() if self.end else "remove it"
            raise self._error(self.at, "this ) closes nothing", hint)
        frame = self.stack.pop()
        self._check_skips(frame)
        self.at += 1
        self._add(List(tuple(frame.items), *self._where(frame.start)))

    def _add(self, node: Node) -> None:
        frame = self.stack[-1]
        if frame.skips:
            frame.skips.pop()
            return
        if len(self.stack) == 1:
            self._check_only(node)
            self.end = self.at
        frame.items.append(node)

    def _check_only(self, node: Node) -> None:
        """SpecError if this is a second s-expression. An extra ) may have ended the first one early."""
        if self.stack[0].items:
            hint = f"{self._first_end()}; look for an extra ) there, or put parentheses around the whole"
            message = "a second s-expression where the text should end"
            raise SpecError(message, line=node.line, column=node.column, hint=hint)

    def _first_end(self) -> str:
        line, column = self._where(self.end - 1)
        return f"the first ends at line {line}, column {column}"

    def _finish(self) -> Node:
        if len(self.stack) > 1:
            raise self._error(self.stack[-1].start, "this ( is never closed", self._unclosed_hint())
        self._check_skips(self.stack[0])
        if not self.stack[0].items:
            hint = "write one s-expression, such as ((from debian-12) (run (shell make)))"
            raise SpecError("the text is empty or has only comments", hint=hint)
        return self.stack[0].items[0]

    def _unclosed_hint(self) -> str:
        missing = len(self.stack) - 1
        if missing > 1:
            return f"{missing} closing parentheses are missing"
        if (suspect := self._suspect()) is not None:
            return f"the list at line {suspect.line}, column {suspect.column} may lack its )"
        return "add a ) where its list ends"

    def _suspect(self) -> List | None:
        """The only list that has a list on a later line indented no deeper, as if that were its sibling."""
        root = List(tuple(self.stack[1].items), *self._where(self.stack[1].start))
        suspects: list[List] = []
        todo = [root]
        while todo:
            node = todo.pop()
            children = [item for item in node.items if isinstance(item, List)]
            if any(child.line > node.line and child.column <= node.column for child in children):
                suspects.append(node)
            todo += children
        return suspects[0] if len(suspects) == 1 and suspects[0] is not root else None

    def _check_skips(self, frame: _Frame) -> None:
        if frame.skips:
            raise self._error(frame.skips[-1], "#; with nothing after it to comment out", "remove it")

    def _skip_comment(self) -> None:
        start, depth = self.at, 0
        while found := _BLOCK.search(self.string, self.at):
            self.at = found.start()
            if found[0] == '"':
                self._quoted()
                continue
            self.at += 2
            depth += 1 if found[0] == "#|" else -1
            if depth == 0:
                return
        raise self._error(start, "this #| comment is never closed", "end it with |#; they nest")

    def _quoted(self) -> str:
        found = _STRING.match(self.string, self.at)
        if not found:
            hint = 'end it with a ", and write \\" for a quote inside it'
            raise self._error(self.at, "this quoted string is never closed", hint)
        self.at = found.end()
        body, start = found[1], found.start(1)
        if "\\" not in body:
            return body
        return decoded(_ESCAPE.sub(lambda escape: self._unescaped(escape, start), body))

    def _unescaped(self, escape: re.Match[str], start: int) -> str:
        code = escape[1]
        if "\n" in code:
            return ""
        if code[0] in "0123456789x":
            return self._byte(code, start + escape.start())
        return _LETTERS.get(code, escape[0])

    def _byte(self, code: str, where: int) -> str:
        value = int(code[1:] or "0", 16) if code[0] == "x" else int(code)
        if len(code) < 3 or value > 255:
            hint = "write \\ddd with a number up to 255, \\xhh, or \\\\ for a backslash"
            raise self._error(where, f"\\{code} is not an escape", hint)
        return chr(value) if value < 128 else chr(0xDC00 + value)

    def _where(self, offset: int) -> tuple[int, int]:
        line = bisect_right(self.lines, offset)
        return line, offset - self.lines[line - 1] + 1

    def _error(self, offset: int, message: str, hint: str) -> SpecError:
        line, column = self._where(offset)
        return SpecError(message, line=line, column=column, hint=hint)
