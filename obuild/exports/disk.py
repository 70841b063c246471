"""The disk of a layer, unpacked once for all formats."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from obuild.guests.profile import Card
from obuild.plan.keys import LayerId

_NAMESPACE = uuid.UUID("0c6c7a52-4f0b-4f6e-9a4d-4c0a4d0f2d7b")


def _nobody(text: str) -> None:
    pass


class Options(NamedTuple):
    """What users choose about a format: `compression` is that of qcow2 images, `cpus` is for an `ova`."""

    compression: str = "zstd"
    cpus: int = 1


class Disk(NamedTuple):
    """A raw disk with holes, and what an image of it must say. `size` is in bytes, `card` is that of its base.

    `say` tells the user something. Files that belong to one export are made in the folder of `path`.
    """

    path: Path
    size: int
    layer: LayerId
    card: Card
    options: Options = Options()
    say: Callable[[str], object] = _nobody

    def id(self, what: str) -> uuid.UUID:
        """The id that a format wants for `what`: the same for the same layer."""
        return uuid.uuid5(_NAMESPACE, f"{self.layer} {what}")
