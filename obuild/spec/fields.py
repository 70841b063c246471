"""The small parts of a spec: words, numbers, fields, and the errors about them."""

from __future__ import annotations

from obuild.errors import SpecError
from obuild.spec import sexp
from obuild.spec.sexp import Atom, List, Node

#: An example of each op and field, for hints.
EXAMPLES = {
    "build": '(build NAME ((from debian-12) (run (shell "make"))))',
    "from": "(from debian-12)",
    "run": '(run (shell "make install"))',
    "copy": "(copy (src Makefile lib) (dst /src/))",
    "env": "(env NAME value)",
    "workdir": "(workdir /src)",
    "user": "(user (uid 1000) (gid 1000))",
    "shell": "(shell /bin/bash -c)",
    "comment": '(comment "some words")',
    "cache": "(cache (NAME (target /path)))",
    "secrets": "(secrets (NAME (target /run/secrets/NAME)))",
    "network": "(network host)",
    "src": "(src Makefile lib)",
    "dst": "(dst /src/)",
    "exclude": "(exclude .git _build)",
    "target": "(target /path)",
    "buildkit_options": "(buildkit_options ((sharing shared)))",
}
#: The fields of each op, and of each item of a field.
FIELDS = {
    "run": ("shell", "cache", "network", "secrets"),
    "copy": ("from", "src", "dst", "exclude"),
    "cache": ("target", "buildkit_options"),
    "secrets": ("target", "buildkit_options"),
}
#: The arguments of the ops that take a fixed number of words.
WORDS = {
    "from": ("one name",),
    "workdir": ("one path",),
    "comment": ("one text",),
    "env": ("a name", "a value"),
}


class Fields:
    """The fields `(NAME VALUE…)` of `op`. Each is known, and given at most once."""

    def __init__(self, op: str, node: List, items: tuple[Node, ...]) -> None:
        self.op = op
        self.node = node
        self.found: dict[str, List] = {}
        for item in items:
            self._add(item)

    def _add(self, item: Node) -> None:
        match item:
            case List((Atom(name), *_)) if name not in FIELDS[self.op]:
                hint = suggest(name, FIELDS[self.op]) or self._takes()
                raise error(item, f"{self.op}: unknown field {quoted(name)}", hint)
            case List((Atom(name), *_)) if name in self.found:
                first = self.found[name]
                hint = f"the first is at line {first.line}, column {first.column}; keep one of them"
                raise error(item, f"{self.op}: {name} is given twice", hint)
            case List((Atom(name), *_)):
                self.found[name] = item
            case _:
                raise error(item, f"{self.op}: expected a field, but found {show(item)}", self._takes())

    def _takes(self) -> str:
        return f"{self.op} takes {choices(FIELDS[self.op])}, as in {EXAMPLES[self.op]}"

    def rest(self, name: str) -> tuple[Node, ...]:
        """The items after the name; empty if there is no such field."""
        return self.found[name].items[1:] if name in self.found else ()

    def words(self, name: str) -> tuple[str, ...]:
        return tuple(word(item, f"{self.op}: {name}") for item in self.rest(name))

    def require(self, name: str) -> None:
        """SpecError unless the field is given."""
        if name not in self.found:
            raise error(self.node, f"{self.op}: {name} is missing", f"add {self._example(name)}")

    def value(self, name: str) -> Node:
        """The value of a required field that takes one."""
        self.require(name)
        rest = self.rest(name)
        if len(rest) != 1:
            hint = "put a value with spaces in quotes" if rest else f"write {self._example(name)}"
            raise error(self.found[name], f"{self.op}: {name} takes one value, not {len(rest)}", hint)
        return rest[0]

    def word(self, name: str) -> str:
        return word(self.value(name), f"{self.op}: {name}")

    def pairs(self, name: str) -> tuple[tuple[str, str], ...]:
        """The pairs of `(NAME ((key value)…))`; empty if there is no such field."""
        if name not in self.found:
            return ()
        node = self.value(name)
        if isinstance(node, Atom):
            raise error(node, f"{self.op}: {name} takes a list of pairs", f"write {EXAMPLES[name]}")
        return tuple(self._pair(name, item) for item in node.items)

    def _pair(self, name: str, item: Node) -> tuple[str, str]:
        match item:
            case List((Atom(key), Atom(value))):
                return key, value
        raise error(item, f"{self.op}: {name}: {show(item)} is not a pair", f"write {EXAMPLES[name]}")

    def _example(self, name: str) -> str:
        # `shell` is also an op, with another meaning.
        return '(shell "make install")' if name == "shell" else EXAMPLES[name]


def fixed_words(node: List, op: str) -> tuple[str, ...]:
    """The arguments of `(OP WORD…)`; WORDS says how many there must be."""
    args = node.items[1:]
    if len(args) != len(WORDS[op]):
        hint = f"write {EXAMPLES[op]}"
        if len(args) > len(WORDS[op]):
            hint += "; put a word with spaces in quotes"
        raise error(node, f"{op} takes {' and '.join(WORDS[op])}, but {_has(len(args))}", hint)
    return tuple(word(arg, op) for arg in args)


def word(node: Node, where: str) -> str:
    """The text of an atom. SpecError for a list."""
    if isinstance(node, Atom):
        return node.text
    hint = "write it without parentheses, or in quotes if they belong to it"
    raise error(node, f"{where}: expected a word, but found the list {show(node)}", hint)


def number(node: Node, where: str) -> int:
    """An integer, in any notation that OCaml reads."""
    text = word(node, where)
    value = _int(text)
    if value is None:
        raise error(node, f"{where} takes a whole number, not {quoted(text)}", f"write {EXAMPLES['user']}")
    return value


def _int(text: str) -> int | None:
    """`text` as OCaml's int_of_string reads it.

    An int has 63 bits. Decimal digits must not reach the sign bit; 0x, 0o, 0b and 0u may, and wrap around.
    """
    sign = -1 if text[:1] == "-" else 1
    body = text[1:] if text[:1] in ("-", "+") else text
    base = {"0x": 16, "0o": 8, "0b": 2, "0u": 10}.get(body[:2].lower())
    digits = body[2:] if base else body
    if digits[:1] in ("", "_") or not set(digits.lower()) <= set("_0123456789abcdef"[: 1 + (base or 10)]):
        return None
    digits = digits.replace("_", "").lstrip("0") or "0"
    if len(digits) > 63:
        return None
    value = sign * int(digits, base or 10)
    if base is None:
        return value if -(1 << 62) <= value < 1 << 62 else None
    return (value + (1 << 62)) % (1 << 63) - (1 << 62) if abs(value) < 1 << 63 else None


def error(node: Node, message: str, hint: str) -> SpecError:
    """A SpecError at the position of `node`."""
    return SpecError(message, line=node.line, column=node.column, hint=hint)


def show(node: Node) -> str:
    """`node` as text, shortened."""
    text = sexp.dumps(sexp.plain(node))
    return text if len(text) <= 40 else text[:39] + "…"


def quoted(text: str) -> str:
    return f'"{text if text.isprintable() else sexp.escape(text)}"'


def choices(names: tuple[str, ...]) -> str:
    return ", ".join(names[:-1]) + f" and {names[-1]}" if names[1:] else names[0]


def suggest(text: str, names: tuple[str, ...]) -> str:
    """`did you mean …?`, or "" if no name is similar."""
    import difflib  # slow to import, and needed only for an error

    near = difflib.get_close_matches(text.lower(), names, 1)
    return f"did you mean {quoted(near[0])}?" if near else ""


def _has(count: int) -> str:
    return f"has {count}" if count else "has none"
