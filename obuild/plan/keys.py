"""Keys: the texts whose hashes are the ids of layers. Only this module writes or reads them.

A key is an s-expression of `(NAME VALUE)` pairs: everything that changes the result of a step, and nothing else.
Its sha256 is the id of the step, and its text is kept in the layer.
"""

from __future__ import annotations

import hashlib
import re
from typing import NewType

from obuild.spec import UnixUser, WindowsUser, sexp
from obuild.spec.sexp import Sexp

LayerId = NewType("LayerId", str)

#: The fields of a key by name.
Fields = dict[str, Sexp]

User = UnixUser | WindowsUser

#: Matches a sha256 in hex: an id, or the digest of a file.
SHA256 = "[0-9a-f]{64}"

#: The format of the keys that are written. Format 1, of development versions, had the executor in every key,
#: before the parent. Its layers can be inspected and removed, but nothing is built on them any more.
FORMAT = "2"

#: How many bytes of a key `parent` needs; a whole key may list 100,000 files.
HEAD = 200

#: How deep lists may be nested in a field. A manifest has two levels.
DEEPEST = 20

_PARENT = re.compile(rf"\(\(format (?:2|1\)\(executor \w+)\)\(parent ({SHA256})\)")
_COPY = re.compile(_PARENT.pattern + r"\(copy ")


def layer_id(key: str) -> LayerId:
    """The id of the layer with this key."""
    return LayerId(hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest())


# -- writing


def of_base(digest: str) -> str:
    """The key of a base's layer. `digest` is the sha256 of the image's content, in hex."""
    return _write(("base", f"sha256:{digest}"))


def base_id(digest: str) -> LayerId:
    """The id of a base's layer, from its digest."""
    return layer_id(of_base(digest))


def of_command(
    parent: LayerId,
    *,
    executor: str,
    workdir: str,
    user: User,
    env: tuple[tuple[str, str], ...],
    argv: tuple[str, ...],
    network: bool,
    secrets: tuple[tuple[str, str], ...],
) -> str:
    """The key of a command. It has the executor, since the result may depend on the kernel it ran on.

    `secrets` are names and targets: the value of a secret never reaches a key.
    """
    return _write(
        ("parent", parent),
        ("executor", executor),
        ("workdir", workdir),
        ("user", _user_text(user)),
        ("env", env),
        ("run", argv),
        ("network", "host" if network else "none"),
        ("secrets", secrets),
    )


def of_copy(parent: LayerId, *, dest: str, user: User, files: tuple[tuple[str, ...], ...]) -> str:
    """The key of a copy. The same files give the same key, wherever they come from."""
    return _write(("parent", parent), ("copy", dest), ("user", _user_text(user)), ("files", files))


def _write(*fields: tuple[str, Sexp]) -> str:
    return sexp.dumps((("format", FORMAT), *fields))


def _user_text(user: User) -> Sexp:
    return (str(user.uid), str(user.gid)) if isinstance(user, UnixUser) else user.name


# -- reading


def parent(key: bytes) -> LayerId | None:
    """The parent of the layer with this key; the first HEAD bytes are enough. None for a base."""
    found = _PARENT.match(key[:HEAD].decode("utf-8", "replace"))
    return LayerId(found[1]) if found else None


def is_copy(key: str) -> bool:
    """Whether this is the key of a copy; only its beginning is read."""
    return _COPY.match(key) is not None


def fields(key: str) -> Fields:
    """The fields of a key. SpecError if it is not an s-expression.

    A field that is nested deeper than any step's is returned as text, because code that reads fields recurses.
    """
    found: Fields = {}
    for pair in sexp.loads(key):
        if isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str):
            found[pair[0]] = sexp.dumps(pair[1]) if _is_deep(pair[1]) else pair[1]
    return found


def _is_deep(value: Sexp) -> bool:
    level = [value] if isinstance(value, tuple) else []
    for _ in range(DEEPEST):
        level = [inner for item in level for inner in item if isinstance(inner, tuple)]
        if not level:
            return False
    return True


def base_digest(key: Fields) -> str:
    """The digest in the key of a base, as passed to `of_base`; "" if there is none."""
    return str(key.get("base", "")).removeprefix("sha256:")


def workdir(key: Fields) -> str:
    """The folder that a command runs in. ValueError if the key has none."""
    return _text(_field(key, "workdir"))


def env(key: Fields) -> tuple[tuple[str, str], ...]:
    """The variables of a command. ValueError if the key has none."""
    return tuple(_pair(item) for item in _list(_field(key, "env")))


def user(key: Fields) -> User:
    """The user that runs a command. ValueError if the key has none."""
    value = _field(key, "user")
    if isinstance(value, str):
        return WindowsUser(value)
    uid, gid = _pair(value)
    return UnixUser(int(uid), int(gid))


def _field(key: Fields, name: str) -> Sexp:
    if name not in key:
        raise ValueError(f"there is no {name}")
    return key[name]


def _pair(value: Sexp) -> tuple[str, str]:
    first, second = map(_text, _list(value))
    return first, second


def _list(value: Sexp) -> tuple[Sexp, ...]:
    if isinstance(value, str):
        raise ValueError("a word where a list belongs")  # about a file's content, not an argument
    return value


def _text(value: Sexp) -> str:
    if not isinstance(value, str):
        raise ValueError("a list where a word belongs")
    return value
