"""Where a command runs in a layer: the workdir, user and environment of the step that made the layer."""

from __future__ import annotations

from obuild.errors import SpecError, StoreError
from obuild.guests import rules
from obuild.plan import keys
from obuild.plan.keys import Fields, LayerId
from obuild.plan.steps import Command
from obuild.store.layers import Store


def command(store: Store, id: LayerId, os: str, argv: tuple[str, ...], *, network: bool) -> Command:
    """Return `argv` as a command like the one that made the layer, or like the last command below it.

    For a base, it is like the first step of a spec. StoreError if a layer was just removed, or is damaged.
    """
    key = _last_run(store, id)
    if key is None:
        start = rules.start(os)
        return Command(argv, start.workdir, (), start.user, network)
    try:
        return Command(argv, keys.workdir(key), keys.env(key), keys.user(key), network)
    except ValueError as error:
        raise StoreError(f"the key of layer {id} has no user, workdir or environment") from error


def _last_run(store: Store, id: LayerId) -> Fields | None:
    """Return the key of the last layer in the chain that was made by a command. None if there is none."""
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
