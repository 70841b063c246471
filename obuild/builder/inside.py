"""Where a command would run in a layer, if one did: the workdir, user and environment of the step that made it."""

from __future__ import annotations

from obuild.errors import SpecError, StoreError
from obuild.guests import rules
from obuild.plan import keys
from obuild.plan.keys import Fields, LayerId
from obuild.plan.steps import Command
from obuild.store.layers import Store


def command(store: Store, id: LayerId, os: str, argv: tuple[str, ...], *, network: bool) -> Command:
    """`argv` as a command of the step that made the layer, or of the last one below it that ran a command.

    Of a base it is what the first step of a spec would be. StoreError if a layer was just removed, or is damaged.
    """
    key = _last_run(store, id)
    if key is None:
        start = rules.start(os)
        return Command(argv, start.workdir, (), start.user, network)
    try:
        return Command(argv, keys.workdir(key), keys.env(key), keys.user(key), network)
    except ValueError as error:
        raise StoreError(f"the key of layer {id} says no user, workdir or environment") from error


def _last_run(store: Store, id: LayerId) -> Fields | None:
    """The key of the last layer of a chain that a command has made."""
    layer = store.layer(id)
    try:
        while (parent := layer.parent) is not None:
            text = layer.key
            if not keys.is_copy(text) and "run" in (key := keys.fields(text)):
                return key
            layer = store.layer(parent)
    except FileNotFoundError as error:
        raise StoreError(f"layer {layer.id} was just removed from the store", hint="build again") from error
    except SpecError as error:
        raise StoreError(f"the key of layer {layer.id} is damaged: {error}", hint="see `obuild fsck`") from error
    return None
