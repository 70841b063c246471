"""What the disk of a layer in the store holds, as a digest: see `layer.content_of`. It is remembered."""

from __future__ import annotations

import json

from obuild.host.fs import replace_text
from obuild.host.regular import read_text
from obuild.plan.keys import LayerId
from obuild.remotes.layer import content_of
from obuild.remotes.slices import Cutter
from obuild.store.layers import Layer, Store


def of(store: Store, id: LayerId) -> str:
    """The digest of a layer that the caller has in use. If it is not remembered, all its data is read."""
    unknown: list[Layer] = []
    layer = store.layer(id)
    while not (found := _remembered(store, layer)) and (parent := layer.parent) is not None:
        unknown.append(layer)
        layer = store.layer(parent)
    found = found or layer.id
    for layer in reversed(unknown):
        with Cutter(layer.image) as cutter:
            slices = (cutter.cut(number)[0] for number in cutter.numbers)
            found = content_of(found, cutter.size, [each for each in slices if each.data or each.zeros])
        remember(store, layer.id, found)
    return found


def remember(store: Store, id: LayerId, content: str) -> None:
    """Note the digest of a layer, as long as that is not removed and made again."""
    store.manifests.mkdir(exist_ok=True)
    stamp = store.layer(id).stamp()
    replace_text(store.manifests / f"{id}-content.json", json.dumps({"stamp": stamp, "content": content}))


def _remembered(store: Store, layer: Layer) -> str:
    try:
        kept = json.loads(read_text(store.manifests / f"{layer.id}-content.json"))
        return str(kept["content"]) if kept["stamp"] == layer.stamp() else ""
    except (OSError, ValueError, KeyError, TypeError):  # the note only saves time
        return ""
