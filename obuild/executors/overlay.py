"""Overlays on the disk of a running QEMU or storage daemon: each step's image is put on top of the last one.

The nodes of the disk are called disk0, disk1 and so on.
"""

from __future__ import annotations

from pathlib import Path

from obuild.executors.qmp import Qmp
from obuild.plan.keys import LayerId
from obuild.store import parts
from obuild.store.layers import Draft

#: The store makes a layer durable when it commits it: nothing needs to be flushed to disk before that.
OPTIONS: dict[str, object] = {"cache": {"no-flush": True}, "discard": "unmap"}


def node(number: int) -> str:
    """The name of a node of the disk."""
    return f"disk{number}"


def put(qmp: Qmp, path: Path, number: int) -> None:
    """Put an overlay on top, as the node `number`: the image below it is complete, and open only for reading."""
    file = {"driver": "file", "filename": str(path), "node-name": f"file{number}"}
    overlay = {"driver": "qcow2", "file": f"file{number}", "node-name": node(number), "backing": None}
    qmp.execute("blockdev-add", {**file, **OPTIONS})
    qmp.execute("blockdev-add", {**overlay, **OPTIONS})
    qmp.execute("blockdev-snapshot", {"node": node(number - 1), "overlay": node(number)})


def image_of(layer: LayerId) -> str:
    """Return a layer's image as seen from a draft's, or from an overlay, which is as deep in the store."""
    return parts.seen_from_image(parts.layer_image(layer))


def stands_on(draft: Draft, layer: LayerId | None) -> bool:
    """Return whether a disk that stands on `layer` can continue as the draft's: it is the parent's, as the draft
    has it, and not the parent's flattened copy.
    """
    return layer is not None and layer == draft.parent and draft.below == image_of(layer)
