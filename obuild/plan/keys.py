"""Keys: the texts that layers are named by. The only module that writes or reads one.

A key is an s-expression of `(NAME VALUE)` pairs: everything that changes the result of a step, and nothing else.
Its sha256 is the id of the step, and it is kept in the layer as it was hashed.
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

#: Matches a sha256 in hex, which ids are, and digests of files.
SHA256 = "[0-9a-f]{64}"

#: The format of the keys that are written. Format 1, which development versions wrote, named the executor in every
#: key, and before the parent. Its layers can be looked into and removed; nothing is built on them any more.
FORMAT = "2"

#: How many bytes of a key `parent` needs. A whole key may list 100,000 files.
HEAD = 200

#: How many lists may be inside each other in a field. A manifest has two.
DEEPEST = 20

_PARENT = re.compile(rf"\(\(format (?:2|1\)\(executor \w+)\)\(parent ({SHA256})\)")
_COPY = re.compile(_PARENT.pattern + r"\(copy ")


def layer_id(key: str) -> LayerId:
    """The name of the layer that has this key."""
    return LayerId(hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest())


# -- writing


def of_base(digest: str) -> str:
    """The key of a base's layer. `digest` is the sha256 of the image's content, in hex."""
    return _write(("base", f"sha256:{digest}"))


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
    """The key of a command. It names the executor, for the result may depend on the kernel that it ran on.

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
    """The layer below the one that has this key; its first HEAD bytes are enough. None for a base."""
    found = _PARENT.match(key[:HEAD].decode("utf-8", "replace"))
    return LayerId(found[1]) if found else None


def is_copy(key: str) -> bool:
    """Whether this is the key of a copy, of which only the beginning is read."""
    return _COPY.match(key) is not None


def fields(key: str) -> Fields:
    """The fields of a key. SpecError if it is no s-expression.

    A field that is nested deeper than any step's stands as its text, because what reads the fields recurses.
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
    """The digest in the key of a base, as `of_base` takes it; "" if there is none."""
    return str(key.get("base", "")).removeprefix("sha256:")


def workdir(key: Fields) -> str:
    """The folder that a command runs in. ValueError if the key says none."""
    return _text(_field(key, "workdir"))


def env(key: Fields) -> tuple[tuple[str, str], ...]:
    """The variables of a command. ValueError if the key says none."""
    return tuple(_pair(item) for item in _list(_field(key, "env")))


def user(key: Fields) -> User:
    """Who runs a command. ValueError if the key says nobody."""
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
        raise ValueError("a word where a list belongs")  # of a file, not of an argument
    return value


def _text(value: Sexp) -> str:
    if not isinstance(value, str):
        raise ValueError("a list where a word belongs")
    return value
