"""What a worker is asked to do, as JSON: make the layers of a chain, or tell what files a copy takes from a layer.

The steps are those from the base on: the worker finds out itself which of their layers are made. The files of
copies are packs in the remote. No value of a secret is in an order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from obuild.builder.farm import sources
from obuild.builder.farm.sources import Pack, Packed
from obuild.errors import UsageError
from obuild.executors.settings import Settings
from obuild.guests.profile import Card
from obuild.plan.keys import LayerId
from obuild.plan.steps import ABSENT, Base, Command, Extract, Graft, Import, Step, Transfer
from obuild.plan.tree import Entry, Tree
from obuild.remotes.layer import Blob
from obuild.spec import Cache, Secret, UnixUser, WindowsUser
from obuild.version import VERSION


class Chain(NamedTuple):
    """Make the layers of these steps, as far as they are missing, and send them to the remote.

    `packed` has the files of the copies that may have to be made.
    """

    executor: str
    settings: Settings
    steps: tuple[Step, ...]
    packed: Mapping[LayerId, Packed]


class Files(NamedTuple):
    """Tell what files an Extract takes from a layer."""

    executor: str
    settings: Settings
    layer: LayerId
    extract: Extract


Order = Chain | Files


def _base(digest: str) -> Import:
    return Import(Base("base", ABSENT, digest, (0, 0, 0), Card()))


def _tree(entries: tuple[Entry, ...]) -> Tree:
    return Tree(ABSENT, entries)


#: The records that an order is made of, by name. Their fields are records, lists, texts and numbers.
_RECORDS: dict[str, Callable[..., Any]] = {
    **{
        record.__name__: record
        for record in (
            *(Settings, Command, Cache, Secret, UnixUser, WindowsUser, Transfer, Entry, Extract, Graft),
            *(Packed, Pack, sources.Part, Blob),
        )
    },
    "Import": _base,
    "Tree": _tree,
}


def dump(order: Order) -> bytes:
    """An order as JSON: the same order gives the same bytes."""
    fields: dict[str, Any] = {"executor": order.executor, "settings": _dumped(order.settings)}
    if isinstance(order, Files):
        fields |= {"layer": order.layer, "extract": _dumped(order.extract)}
    else:
        fields["steps"] = [
            {
                "id": step.id,
                "headings": step.headings,
                "action": _dumped(step.action),
                "packed": _dumped(order.packed.get(step.id)),
            }
            for step in order.steps
        ]
    return json.dumps({"obuild": VERSION, **fields}, sort_keys=True).encode()


def _dumped(value: Any) -> Any:
    if isinstance(value, Import):
        return {"Import": [value.base.digest]}
    if isinstance(value, Tree):
        return {"Tree": [_dumped(value.entries)]}
    if isinstance(value, tuple):
        items = [_dumped(each) for each in value]
        return {type(value).__name__: items} if hasattr(value, "_fields") else items
    return value


def load(data: bytes) -> Order:
    """Read an order. UsageError if it comes from another version of obuild, or is damaged."""
    try:
        found = json.loads(data)
        if found["obuild"] != VERSION:
            raise UsageError(f"the build is by obuild {found['obuild']}, and this worker is obuild {VERSION}")
        executor, settings = str(found["executor"]), _loaded(found["settings"])
        if "extract" in found:
            return Files(executor, settings, LayerId(found["layer"]), _loaded(found["extract"]))
        steps: list[Step] = []
        packed: dict[LayerId, Packed] = {}
        for each in found["steps"]:
            step = Step(steps[-1].id if steps else None, _loaded(each["action"]), tuple(each["headings"]))
            if step.id != each["id"]:
                raise ValueError(f"step {each['id']} has another id here, {step.id}")
            steps.append(step)
            if each["packed"] is not None:
                packed[step.id] = _loaded(each["packed"])
        return Chain(executor, settings, tuple(steps), packed)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"the order of a build cannot be read: {error}") from error


def _loaded(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_loaded(each) for each in value)
    if isinstance(value, dict):
        ((name, fields),) = value.items()
        return _RECORDS[name](*map(_loaded, fields))
    return value
