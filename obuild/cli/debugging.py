"""What the commands that look into a layer or clean it share: starting a machine on a layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from obuild.cli.console import executor_of, note, open_store
from obuild.errors import UsageError

if TYPE_CHECKING:
    from obuild.builder.debug import Debugger
    from obuild.builder.sysprep import Cleaner
    from obuild.events import Event
    from obuild.executors.settings import Settings
    from obuild.plan.keys import LayerId
    from obuild.store.layers import Store


def open_layer(store: str, id: str, settings: Settings) -> Debugger:
    """Return what starts machines on the layer `id`. UsageError if there is no such layer, or not yet."""
    from obuild.builder.debug import Debugger
    from obuild.builder.provision import Machines
    from obuild.events import Teller
    from obuild.store.index import resolve

    opened = open_store(store)
    layer = resolve(opened, id, drafts=True)
    if opened.find(layer) is None:
        raise UsageError(
            f"the step {layer[:12]} is still being built", hint=f"obuild logs {layer[:12]} shows its output so far"
        )
    return Debugger(opened, Machines(opened, settings, executor_of(store)), layer, Teller(_say))


def cleaner(opened: Store, store: str, layer: LayerId, settings: Settings, operations: tuple[str, ...]) -> Cleaner:
    """Return what cleans copies of a layer in machines; `store` is the option."""
    from obuild.builder.provision import Machines
    from obuild.builder.sysprep import Cleaner
    from obuild.events import Teller

    return Cleaner(opened, Machines(opened, settings, executor_of(store)), layer, operations, Teller(_say))


def _say(event: Event) -> None:
    """Print notes and ignore all other events."""
    from obuild.events import Note

    if isinstance(event.what, Note):
        note(event.what.text)


def is_open(network: str) -> bool:
    """Return whether --network opens the network. UsageError for an unknown value."""
    if network not in ("", "none", "host"):
        raise UsageError(f"--network {network}: it can be host or none")
    return network == "host"
