"""Parse text into a Stage, or raise a SpecError that says where, what, and what to do.

It accepts exactly what OBuilder accepts, with one exception: a byte order mark at the start, which some editors
write, is ignored; OBuilder takes it for a word.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from obuild.errors import SpecError
from obuild.spec import sexp
from obuild.spec.fields import (
    EXAMPLES,
    FIELDS,
    Fields,
    choices,
    error,
    fixed_words,
    number,
    quoted,
    show,
    suggest,
    word,
)
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
from obuild.spec.sexp import Atom, List, Node

Mount = TypeVar("Mount", Cache, Secret)

OPS = ("run", "copy", "env", "workdir", "user", "shell", "comment")
#: If the name of one of these ops is capitalized, OBuilder wants its fields in a list of their own: `(Run (…))`.
_INLINE = ("run", "copy", "user", "env")

#: How deep builds may be nested. OBuilder's limit is its stack; ours is far more than anybody can read.
DEEPEST = 100

_SPEC = 'a spec looks like ((from debian-12) (run (shell "make")))'


def parse(text: str | bytes) -> Stage:
    """Parse a spec. SpecError, with its position, for anything that OBuilder would refuse."""
    stage = _read_stage(_root(sexp.parse(without_mark(text))), 0)
    check(stage)
    return stage


def without_mark(text: str | bytes) -> str | bytes:
    """`text` without a byte order mark at its start."""
    return text.removeprefix("\ufeff") if isinstance(text, str) else text.removeprefix(b"\xef\xbb\xbf")


def check(stage: Stage) -> None:
    """SpecError if a copy names a build that is not in scope: those before its stage, at any level around it."""
    _check(stage, ())


def _check(stage: Stage, scope: tuple[str, ...]) -> None:
    for name, child in stage.stages:
        _check(child, scope)
        scope = (*scope, name)
    for op in stage.ops:
        if isinstance(op, Copy) and op.origin is not None and op.origin not in scope:
            message = f"copy: there is no build {quoted(op.origin)} before this stage"
            hint = _origin_hint(op.origin, scope, stage.base)
            raise SpecError(message, line=op.line, column=op.column, hint=hint)


def _origin_hint(origin: str, scope: tuple[str, ...], base: str) -> str:
    if scope:
        return suggest(origin, scope) or f"it can copy from {choices(tuple(map(quoted, scope)))}"
    return f"put (build {sexp.quote(origin)} (…)) before (from {sexp.quote(base)})"


# Each of the following functions converts the node of one thing to that thing, or raises SpecError.


def _root(node: Node) -> Node:
    match node:
        case Atom(text):
            raise error(node, f"the spec is the word {quoted(text)}, not a list", _SPEC)
        case List(()):
            raise error(node, "the spec is an empty list", _SPEC)
        case List((Atom(text) as first, *_)):
            message = f"a spec is a list of lists, but this one starts with the word {quoted(text)}"
            raise error(first, message, f"put one more pair of parentheses around the whole: {_SPEC}")
    return node


def _read_stage(node: Node, depth: int) -> Stage:
    if depth > DEEPEST:
        raise error(node, "the builds are nested too deeply", "put them side by side")
    if isinstance(node, Atom):
        raise error(node, f"a build takes a list, not {show(node)}", f"write {EXAMPLES['build']}")
    stages: list[tuple[str, Stage]] = []
    for index, item in enumerate(node.items):
        match item:
            case List((Atom("from"), *_)):
                (base,) = fixed_words(item, "from")
                return Stage(base, tuple(map(_read_op, node.items[index + 1 :])), tuple(stages))
        stages.append(_read_build(item, depth))
    hint = f"after the builds, name the base image, as in {EXAMPLES['from']}"
    raise error(node, "(from …) is missing", hint)


def _read_build(node: Node, depth: int) -> tuple[str, Stage]:
    match node:
        case List((Atom("build"), Atom(name), child)):
            return name, _read_stage(child, depth + 1)
        case List((Atom("build"), *_)):
            raise error(node, "build takes a name and one list", f"write {EXAMPLES['build']}")
    hint = f"begin with {EXAMPLES['from']}; only (build …) may come before it"
    raise error(node, f"{show(node)} comes before (from …)", hint)


def _read_op(node: Node) -> Op:
    match node:
        case List((Atom(head), *_)):
            name = head[:1].lower() + head[1:]
            if name not in OPS:
                raise _unknown_op(node, head)
            if name in _INLINE and name != head:
                node = _without_inner_list(node, head)
            return _READERS[name](node)
    raise error(node, f"expected an op, but found {show(node)}", f"write one like {EXAMPLES['run']}")


def _unknown_op(node: Node, name: str) -> SpecError:
    if name == "from":
        hint = "a stage has one base; another stage goes in a (build …) before (from …)"
        return error(node, "a second (from …)", hint)
    if name == "build":
        return error(node, "build comes after (from …)", "move every (build …) before (from …)")
    message = f"unknown op {quoted(name)}"
    for op in ("run", "copy"):
        if name in FIELDS[op]:
            return error(node, message, f"{name} is a field of {op}: write it inside ({op} …)")
    return error(node, message, suggest(name, OPS) or f"the ops are {choices(OPS)}")


def _without_inner_list(node: List, head: str) -> List:
    """Turn `(Run ((shell x)))` into `(run (shell x))`, as OBuilder does."""
    match node.items:
        case (name, List(items)) if head == "Env" or all(isinstance(item, List) for item in items):
            return List((name, *items), node.line, node.column)
    raise error(node, f"unknown op {quoted(head)}", f"did you mean {quoted(head.lower())}?")


def _read_run(node: List) -> Run:
    fields = Fields("run", node, node.items[1:])
    return Run(
        fields.word("shell"),
        tuple(_read_mount("cache", Cache, item) for item in fields.rest("cache")),
        fields.words("network"),
        tuple(_read_mount("secrets", Secret, item) for item in fields.rest("secrets")),
        line=node.line,
        column=node.column,
    )


def _read_mount(field: str, kind: type[Mount], node: Node) -> Mount:
    match node:
        case List((Atom(name), *items)):
            fields = Fields(field, node, tuple(items))
            if "target" not in fields.found:
                raise _no_target(field, name, node)
            return kind(name, fields.word("target"), fields.pairs("buildkit_options"))
        case Atom(name):
            raise _no_target(field, name, node)
    raise error(node, f"{field}: expected a name, but found {show(node)}", f"write {EXAMPLES[field]}")


def _no_target(field: str, name: str, node: Node) -> SpecError:
    target = sexp.quote(f"/run/secrets/{name}" if field == "secrets" else "/path")
    hint = f"write ({field} ({sexp.quote(name)} (target {target})))"
    return error(node, f"{field}: {quoted(name)} has no target", hint)


def _read_copy(node: List) -> Copy:
    fields = Fields("copy", node, node.items[1:])
    fields.require("src")
    return Copy(
        fields.words("src"),
        fields.word("dst"),
        fields.words("exclude"),
        _read_origin(fields.value("from")) if "from" in fields.found else None,
        line=node.line,
        column=node.column,
    )


def _read_origin(node: Node) -> str | None:
    match node:
        case Atom("context"):
            return None
        case List((Atom("build"), Atom(name))):
            return name
    name = sexp.quote(node.text) if isinstance(node, Atom) else "NAME"
    hint = f"write (from (build {name})), or leave it out to copy from the context"
    raise error(node, f"copy: cannot copy from {show(node)}", hint)


def _read_env(node: List) -> Env:
    name, value = fixed_words(node, "env")
    return Env(name, value, line=node.line, column=node.column)


def _read_workdir(node: List) -> Workdir:
    (path,) = fixed_words(node, "workdir")
    return Workdir(path, line=node.line, column=node.column)


def _read_comment(node: List) -> Comment:
    (text,) = fixed_words(node, "comment")
    return Comment(text, line=node.line, column=node.column)


def _read_shell(node: List) -> Shell:
    argv = tuple(word(item, "shell") for item in node.items[1:])
    return Shell(argv, line=node.line, column=node.column)


def _read_user(node: List) -> User:
    user: UnixUser | WindowsUser
    match node.items[1:]:
        case (List((Atom("name"), name)),):
            user = WindowsUser(word(name, "user: name"))
        case (List((Atom("uid"), uid)), List((Atom("gid"), gid))):
            user = UnixUser(number(uid, "user: uid"), number(gid, "user: gid"))
        case _:
            hint = f"write {EXAMPLES['user']}, in this order; for Windows, (user (name NAME))"
            raise error(node, "user takes a uid and a gid, or a name", hint)
    return User(user, line=node.line, column=node.column)


_READERS: dict[str, Callable[[List], Op]] = {
    "run": _read_run,
    "copy": _read_copy,
    "env": _read_env,
    "workdir": _read_workdir,
    "user": _read_user,
    "shell": _read_shell,
    "comment": _read_comment,
}
