"""The disk of a layer, unpacked once for all formats."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from obuild.errors import UsageError
from obuild.guests.profile import Card
from obuild.plan.keys import LayerId

COMPRESSIONS = ("zstd", "zlib", "none")

_LABEL = re.compile(r"[A-Za-z0-9._-]{1,16}")

_NAMESPACE = uuid.UUID("0c6c7a52-4f0b-4f6e-9a4d-4c0a4d0f2d7b")


def _nobody(*heard: object) -> None:
    pass


class Options(NamedTuple):
    """What users choose about a format.

    `compression` is that of qcow2 images, `cpus` is for an `ova`. A live system keeps its changes on the partition
    with the label `persist`, if any. An installer writes to `install_disk` ("" for the only one; `smallest`,
    `largest`, or a name or serial number), and asks nobody if `unattended`. `labels` are names and values in the
    configuration of a container image.
    """

    compression: str = "zstd"
    cpus: int = 1
    persist: str = ""
    install_disk: str = ""
    unattended: bool = False
    labels: tuple[tuple[str, str], ...] = ()

    def check(self, types: Collection[str]) -> None:
        """UsageError for a value that is wrong, or is for none of the types."""
        if self.compression not in COMPRESSIONS:
            raise UsageError(f"--compression {self.compression}: it can be {', '.join(COMPRESSIONS)}")
        if self.persist and "iso" not in types:
            raise UsageError("--persist is for --type iso")
        if self.persist and not _LABEL.fullmatch(self.persist):
            hint = "letters, digits, and . _ -; 16 at most"
            raise UsageError(f"--persist {self.persist!r}: it is the label of a partition", hint=hint)
        if (self.install_disk or self.unattended) and "installer-iso" not in types:
            raise UsageError("--disk and --unattended are for --type installer-iso")
        if self.labels and not {"containerdisk", "oci-archive"} & set(types):
            raise UsageError("--label is for container images", hint="--type containerdisk or oci-archive")


def labels(words: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Labels from words like KEY=VALUE. UsageError for another word."""
    found = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UsageError(f"--label {word} is not KEY=VALUE")
        found[key] = value
    return tuple(sorted(found.items()))


def id_of(layer: LayerId, what: str) -> uuid.UUID:
    """The id of something that is made from a layer: the same for the same layer."""
    return uuid.uuid5(_NAMESPACE, f"{layer} {what}")


class Disk(NamedTuple):
    """A raw disk with holes, and what an image of it must say. `size` is in bytes, `card` is that of its base.

    `say` tells the user something, and `progress` how many bytes of how many have been read. Files that belong to
    one export are made in the folder of `path`.
    """

    path: Path
    size: int
    layer: LayerId
    card: Card
    options: Options = Options()
    say: Callable[[str], object] = _nobody
    progress: Callable[[int, int], object] = _nobody

    def id(self, what: str) -> uuid.UUID:
        """The id that a format wants for `what`: the same for the same layer."""
        return id_of(self.layer, what)

    def reading(self, total: int = 0) -> Callable[[int], object]:
        """What a program that reads `total` bytes reports to; by default it reads the disk without its holes."""
        total = total or self.path.stat().st_blocks * 512
        return lambda done: self.progress(min(done, total), total)
