"""Describe keys and their differences for people.

A key is an s-expression of `(NAME VALUE)` pairs (see `keys`). Fields that this module does not know are
still compared and shown, so that a key of a later version is never explained wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from obuild.plan.keys import Fields
from obuild.spec import sexp
from obuild.spec.sexp import Sexp

Manifest = dict[str, tuple[str, str, str]]

#: How many characters of a value are shown.
WIDTH = 60
#: How many names of a list are shown.
NAMES = 5


def alike(one: Fields, other: Fields) -> bool:
    """Whether two keys are of the same kind: a base, a command, a copy."""
    return _kind(one) == _kind(other)


def _kind(key: Fields) -> frozenset[str]:
    return frozenset(key.keys() & {"base", "run", "copy"} or key.keys() - {"parent"})


def distance(old: Fields, new: Fields) -> float:
    """How much two keys of one kind differ, parents apart: the sum over the fields, each from 0 to 1."""
    names = (old.keys() | new.keys()) - {"parent"}
    return sum(_apart(old.get(name, ()), new.get(name, ())) for name in names)


def differences(old: Fields, new: Fields) -> list[str]:
    """The differences between two keys in words, one per line; empty if there are none."""
    names = [*new, *(name for name in old if name not in new)]
    lines: list[str] = []
    for name in names:
        was, now = old.get(name, ()), new.get(name, ())
        if was != now:
            lines += list(_WORDS.get(name, _other(name))(was, now)) or [f"{name} changed"]
    return [_one_line(line) for line in lines]


def describe(key: Fields) -> list[tuple[str, list[str]]]:
    """A key for people: the name and lines of each field; fields with default values are left out."""
    shown = []
    for name, value in key.items():
        lines = _SHOWN.get(name, _plain)(value)
        if lines and name != "format":
            shown.append((_one_line(name), [_one_line(line) for line in lines]))
    return shown


def summary(key: Fields) -> str:
    """A key in one line, for a layer whose op is not in the index."""
    match key:
        case {"run": (*_, str(command))}:
            return f"(run (shell {sexp.quote(command)}))"
        case {"copy": str(dest)}:
            return f"(copy … (dst {sexp.quote(dest)}))"
        case {"base": str(digest)}:
            return _one_line(f"(from …@{digest})")
    return _one_line(f"({' '.join(name for name in key if name not in ('format', 'executor', 'parent'))})")


def plain(text: str) -> str:
    """`text` unchanged if a terminal can show it, else in quotes with escapes."""
    return text if text.isprintable() and text else f'"{sexp.escape(text)}"'


def clip(text: str, width: int = WIDTH) -> str:
    """At most `width` characters of a text, on one line."""
    text = _one_line(text)
    return text if len(text) <= width else text[: width - 1] + "…"


def listed(names: Iterable[str]) -> str:
    """`a, b, c, …`: the first few."""
    some = [plain(name) for name in names]
    return ", ".join(some[:NAMES]) + (", …" if len(some) > NAMES else "")


# -- how far apart


def _apart(old: Sexp, new: Sexp) -> float:
    if old == new:
        return 0.0
    if isinstance(old, tuple) and isinstance(new, tuple):
        if old and new and all(isinstance(item, str) for item in (*old, *new)):
            return _texts_apart("\n".join(map(str, old)), "\n".join(map(str, new)))
        here, there = set(old), set(new)
        return len(here ^ there) / max(1, len(here | there)) or 0.5
    return 1.0


def _texts_apart(old: str, new: str) -> float:
    """From 0 to 1, never 0: the part that remains without the common prefix and suffix."""
    start, end = _common(old, new)
    longest = max(len(old), len(new))
    return max(1, longest - start - end) / longest


def _common(old: str, new: str) -> tuple[int, int]:
    """The lengths of the common prefix of two texts, and of the common suffix of the rest."""
    shorter = min(len(old), len(new))
    start = next((index for index in range(shorter) if old[index] != new[index]), shorter)
    room = shorter - start
    end = next((index for index in range(room) if old[-1 - index] != new[-1 - index]), room)
    return start, end


# -- differences


def _change(old: str, new: str) -> str:
    """`old → new`; of long texts only the first difference, with some words around it."""
    if max(len(old), len(new)) > WIDTH:
        start, end = _common(old, new)
        start = _word_start(old, max(0, start - WIDTH // 4))
        end = max(0, end - WIDTH // 4)
        old, new = _cut(old, start, end), _cut(new, start, end)
    return f"{_quoted(old)} → {_quoted(new)}"


def _word_start(text: str, start: int) -> int:
    """The beginning of the word at `start`, if it is near; otherwise `start`."""
    space = max(text.rfind(char, max(0, start - 15), start) for char in " \n") + 1
    return space or start


def _cut(text: str, start: int, end: int) -> str:
    before, after = "…" if start else "", "…" if end else ""
    return before + clip(text[start : len(text) - end], WIDTH) + after


def _quoted(text: str) -> str:
    return clip(text, WIDTH + 2) if text and text.strip() == text else f'"{clip(text)}"'


def _parent(old: Sexp, new: Sexp) -> Iterator[str]:
    yield "parent changed"


def _executor(old: Sexp, new: Sexp) -> Iterator[str]:
    if old and new:
        yield from _named("the executor")(old, new)
    else:
        yield f"the executor is {'now' if new else 'no longer'} part of the key"


def _run(old: Sexp, new: Sexp) -> Iterator[str]:
    before, after = _argv(old), _argv(new)
    if before[:-1] != after[:-1]:
        yield f"the shell changed: {_quoted(' '.join(before[:-1]))} → {_quoted(' '.join(after[:-1]))}"
    if before[-1:] != after[-1:]:
        yield f"the command changed: {_change(''.join(before[-1:]), ''.join(after[-1:]))}"


def _env(old: Sexp, new: Sexp) -> Iterator[str]:
    yield from _pairs("env {}", old, new)


def _secrets(old: Sexp, new: Sexp) -> Iterator[str]:
    yield from _pairs("secret {}", old, new)


def _pairs(label: str, old: Sexp, new: Sexp) -> Iterator[str]:
    before, after = dict(map(_pair, _items(old))), dict(map(_pair, _items(new)))
    for name in sorted(before.keys() | after.keys()):
        what = label.format(plain(name))
        match before.get(name), after.get(name):
            case None, str(value):
                yield f"{what} added: {_quoted(value)}"
            case str(value), None:
                yield f"{what} removed; it was {_quoted(value)}"
            case str(was), str(value) if was != value:
                yield f"{what}: {_change(was, value)}"
    if before == after:
        yield f"{label.format('').strip()}: the order changed"


def _named(label: str) -> Callable[[Sexp, Sexp], Iterator[str]]:
    def words(old: Sexp, new: Sexp) -> Iterator[str]:
        yield f"{label} changed: {_change(_text(old), _text(new))}"

    return words


def _other(name: str) -> Callable[[Sexp, Sexp], Iterator[str]]:
    return _named(plain(name))


def _base(old: Sexp, new: Sexp) -> Iterator[str]:
    yield f"the content of the base image changed: {_digest(old)} → {_digest(new)}"


def _files(old: Sexp, new: Sexp) -> Iterator[str]:
    before, after = _manifest(old), _manifest(new)
    changes: dict[tuple[str, str], list[str]] = {}
    for path in [*after, *(path for path in before if path not in after)]:
        was, now = before.get(path), after.get(path)
        if was != now:
            kind, how = _file_change(was, now)
            changes.setdefault((kind, how), []).append(path)
    for (kind, how), paths in changes.items():
        if len(paths) == 1:
            yield f"{kind} {plain(paths[0])} {how}"
        else:
            yield f"{len(paths)} {kind}s {how}: {listed(paths)}"
    if not changes:
        yield "the files are the same in another order"


def _file_change(was: tuple[str, str, str] | None, now: tuple[str, str, str] | None) -> tuple[str, str]:
    """How a path changed: its kind and the change, such as `file` and `changed`."""
    if was is None or now is None:
        kind, how = (now[0], "added") if now else (was[0] if was else "", "removed")
        return _KINDS.get(kind, kind), how
    kind = _KINDS.get(now[0], now[0])
    if was[0] != now[0]:
        return kind, f"was a {_KINDS.get(was[0], was[0])}"
    if was[2] == now[2]:
        return kind, f"changed its mode: {was[1]} → {now[1]}"
    if now[0] == "file":
        return kind, "changed" if was[1] == now[1] else f"changed, and its mode: {was[1]} → {now[1]}"
    return kind, f"changed: {_change(was[2], now[2])}"


_KINDS = {"file": "file", "dir": "folder", "symlink": "symlink", "link": "hard link"}
_WORDS: dict[str, Callable[[Sexp, Sexp], Iterator[str]]] = {
    "parent": _parent,
    "base": _base,
    "run": _run,
    "env": _env,
    "secrets": _secrets,
    "files": _files,
    "workdir": _named("the workdir"),
    "user": _named("the user"),
    "network": _named("the network"),
    "copy": _named("the destination"),
    "executor": _executor,
    "format": _named("the format of keys"),
}


# -- one key


def _plain(value: Sexp) -> list[str]:
    text = _text(value)
    return [plain(text)] if text else []


def _show_run(value: Sexp) -> list[str]:
    *shell, command = [*_argv(value)] or [""]
    return [" ".join(plain(word) for word in shell), *(f"  {line}" for line in command.split("\n"))]


def _show_pairs(value: Sexp) -> list[str]:
    return [f"{plain(name)}={clip(content)}" for name, content in map(_pair, _items(value))]


def _show_secrets(value: Sexp) -> list[str]:
    return [f"{plain(name)} at {plain(target)}" for name, target in map(_pair, _items(value))]


def _show_files(value: Sexp) -> list[str]:
    return [
        f"{mode:>4} {kind:7} {plain(path)}{_show_content(kind, content)}"
        for path, (kind, mode, content) in _manifest(value).items()
    ]


def _show_content(kind: str, content: str) -> str:
    if kind == "file":
        return f"  {content[:12]}"
    return f" → {plain(content)}" if content else ""


_SHOWN: dict[str, Callable[[Sexp], list[str]]] = {
    "run": _show_run,
    "env": _show_pairs,
    "secrets": _show_secrets,
    "files": _show_files,
}


# -- values


def _items(value: Sexp) -> tuple[Sexp, ...]:
    return value if isinstance(value, tuple) else ()


def _argv(value: Sexp) -> tuple[str, ...]:
    return tuple(map(_text, _items(value)))


def _pair(value: Sexp) -> tuple[str, str]:
    name, text = (*map(_text, _items(value)), "", "")[:2]
    return name, text


def _manifest(value: Sexp) -> Manifest:
    """The entry of each path; of two for one path the later counts, as in the guest."""
    found: Manifest = {}
    for entry in _items(value):
        kind, path, mode, content = (*map(_text, _items(entry)), "", "", "", "")[:4]
        found[path] = (kind, mode, content)
    return found


def _one_line(text: str) -> str:
    """`text` on one line, with escapes if a terminal cannot show it."""
    return text if text.isprintable() else sexp.escape(text)


def _text(value: Sexp) -> str:
    """A short form of a value: a user's `(0 0)` is `0:0`."""
    if isinstance(value, str):
        return value
    return ":".join(map(_text, value)) if all(isinstance(item, str) for item in value) else sexp.dumps(value)


def _digest(value: Sexp) -> str:
    return _text(value)[: len("sha256:") + 12]
