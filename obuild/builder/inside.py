"""Where a command would run in a layer, if one did: the workdir, user and environment of the step that made it."""

from __future__ import annotations

import re

from obuild.errors import SpecError, StoreError
from obuild.guests import rules
from obuild.plan import diff
from obuild.plan.diff import Fields
from obuild.plan.steps import Command, LayerId
from obuild.spec import UnixUser, WindowsUser
from obuild.spec.sexp import Sexp
from obuild.store.layers import Layer, Store

#: Begins the key of a copy. Such a key may list 100,000 files, and none of them matters here.
_COPY = re.compile(r"\(\(format 1\)\(executor \w+\)\(parent [0-9a-f]{64}\)\(copy ")


def command(store: Store, id: LayerId, os: str, argv: tuple[str, ...], *, network: bool) -> Command:
    """`argv` as a command of the step that made the layer, or of the last one below it that ran a command.

    Of a base it is what the first step of a spec would be. StoreError if a layer was just removed, or is damaged.
    """
    key = _last_run(store, id)
    if key is None:
        start = rules.start(os)
        return Command(argv, start.workdir, (), start.user, network)
    try:
        return Command(argv, _text(key["workdir"]), _env(key["env"]), _user(key["user"]), network)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"the key of layer {id} says no user, workdir or environment") from error


def _last_run(store: Store, id: LayerId) -> Fields | None:
    """The key of the last layer of a chain that a command has made."""
    layer = Layer(id, store.result / id)
    try:
        while (parent := layer.parent) is not None:
            text = layer.key
            if not _COPY.match(text) and "run" in (key := diff.fields(text)):
                return key
            layer = Layer(parent, store.result / parent)
    except FileNotFoundError as error:
        raise StoreError(f"layer {layer.id} was just removed from the store", hint="build again") from error
    except SpecError as error:
        raise StoreError(f"the key of layer {layer.id} is damaged: {error}", hint="see `obuild fsck`") from error
    return None


def _env(value: Sexp) -> tuple[tuple[str, str], ...]:
    return tuple(_pair(item) for item in _list(value))


def _user(value: Sexp) -> UnixUser | WindowsUser:
    if isinstance(value, str):
        return WindowsUser(value)
    uid, gid = _pair(value)
    return UnixUser(int(uid), int(gid))


def _pair(value: Sexp) -> tuple[str, str]:
    first, second = map(_text, _list(value))
    return first, second


def _list(value: Sexp) -> tuple[Sexp, ...]:
    if isinstance(value, str):
        raise TypeError("a word where a list belongs")
    return value


def _text(value: Sexp) -> str:
    if not isinstance(value, str):
        raise TypeError("a list where a word belongs")
    return value
