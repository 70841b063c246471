"""What publishing to any target needs and returns."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from obuild.bases.table import nearest
from obuild.errors import UsageError
from obuild.exports.all import FORMATS
from obuild.exports.export import STEM
from obuild.exports.signing import Signer
from obuild.guests.profile import Card
from obuild.plan.keys import LayerId


class Image(NamedTuple):
    """An exported image: a file with its sha256 in hex, or the folder of an OCI layout.

    `card` is that of the layer's base.
    """

    path: Path
    layer: LayerId
    card: Card
    sha256: str = ""


class Published(NamedTuple):
    """What is where now. `digest` is sha256:HEX of the file or of the manifest, `size` of the file, in bytes.

    `reference` names it for those who fetch it; of an image of a cloud it is the id, in `region`.
    """

    target: str
    reference: str
    digest: str
    size: int
    region: str = ""


class Settings(NamedTuple):
    """What the command line says to all targets.

    `uploads` is a folder for what is remembered of unfinished uploads. `progress` is called with the number of
    bytes that are there, and their total. `signer` signs what is in a registry.
    """

    uploads: Path
    environment: Mapping[str, str]
    say: Callable[[str], object]
    progress: Callable[[int, int], object]
    type: str = ""
    replace: bool = False
    insecure: bool = False
    regions: Sequence[str] = ()
    version: str = ""
    signer: Signer | None = None


class Target(Protocol):
    """One place to publish to. It takes images of a `type`, called `stem` before their suffix.

    `check` raises, before anything is exported, what would make `send` fail for layers on bases with these cards:
    UsageError or ObuildError. `send`
    leaves nothing half-written under a name that people use. The next try does not send again what has arrived.
    """

    @property
    def type(self) -> str: ...

    @property
    def stem(self) -> str: ...

    def check(self, cards: Sequence[Card]) -> None: ...

    def send(self, images: Sequence[Image]) -> list[Published]: ...


def type_of(name: str, settings: Settings) -> str:
    """The type of image for a file that is called so: --type, else the longest suffix that a format has."""
    if settings.type:
        if settings.type not in FORMATS:
            raise UsageError(f"unknown type {settings.type!r}", hint=nearest(settings.type, FORMATS))
        return settings.type
    fitting = [type for type, format in FORMATS.items() if name.endswith(f".{format.suffix}")]
    if not fitting:
        suffixes = ", ".join(f".{format.suffix}" for format in FORMATS.values())
        raise UsageError(f"{name}: no type of image has this suffix", hint=f"there are {suffixes}; or use --type")
    return max(fitting, key=lambda type: len(FORMATS[type].suffix))


def file_type_of(name: str, settings: Settings) -> str:
    """As `type_of`, for a place that takes only files."""
    type = type_of(name, settings)
    if type in ("containerdisk", "dir"):
        raise UsageError(
            f"{name}: this type is a folder", hint="use .oci.tar or .tar here, or oci:// for a registry"
        )
    return type


def stem_of(name: str, type: str) -> str:
    """What an image is called inside, for the formats that write it down: the file's name without the suffix."""
    stem = name.removesuffix(f".{FORMATS[type].suffix}")
    return stem if STEM.fullmatch(stem) else "image"


_HOLDER = re.compile(r"\{([^{}]*)\}")


def filled(text: str, values: Mapping[str, str]) -> str:
    """A target with its {placeholders} replaced. UsageError for an unknown one, or one that has no value."""

    def value(found: re.Match[str]) -> str:
        if found[1] not in values:
            raise UsageError(f"{text}: unknown placeholder {found[0]}", hint=nearest(found[1], values))
        if not values[found[1]]:
            raise UsageError(f"{text}: {found[0]} has no value", hint="--version or --version-file gives it")
        return values[found[1]]

    return _HOLDER.sub(value, text)
