"""A layer as an OCI artifact: its config and its manifest, written and read. docs/remote.md describes them.

What is read comes from somebody else: all of it is checked here, before anything is made of it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, NamedTuple

from obuild.errors import ObuildError
from obuild.host.qcow2 import BLOCK, LARGEST, Extent
from obuild.host.zstd import bound
from obuild.plan import keys
from obuild.plan.keys import LayerId
from obuild.remotes.oci import DIGEST, MANIFEST, Descriptor, descriptor, digest_of, packed
from obuild.remotes.slices import SLICE, Slice
from obuild.store.parts import ID

ARTIFACT = "application/vnd.obuild.layer.v1"
CONFIG = "application/vnd.obuild.layer.config.v1+json"
_FILE = "application/vnd.obuild.file.v1+zstd"
_SLICE = "application/vnd.obuild.slice.v1+zstd"

#: The annotations of a manifest.
CONTENT, PARENT, OP = "vnd.obuild.content", "vnd.obuild.parent", "vnd.obuild.op"
_CREATED = "org.opencontainers.image.created"

#: The most that a manifest and a config may take, in bytes. Registries take manifests of up to 4 MiB.
LARGEST_MANIFEST, LARGEST_CONFIG = 4 << 20, 64 << 20

#: The files of a layer that travel; the key is in the config, and the image in slices.
FILE = re.compile(r"log|card\.toml|rootfs/image\.(?:vmlinuz|initrd|nvram)")

#: In seconds since the epoch; later times are no dates.
_END_OF_TIME = 2.0**37


class Blob(NamedTuple):
    """Bytes in a remote: their digest, and how many they are."""

    digest: str
    size: int

    @classmethod
    def of(cls, data: bytes) -> Blob:
        return cls(digest_of(data), len(data))


class File(NamedTuple):
    """A file of a layer, in pieces of `SLICE` bytes; an empty one has one piece."""

    name: str
    size: int
    digests: tuple[str, ...]


class Config(NamedTuple):
    """What a layer is. `ancestors` begins with its parent, and ends with its base; `size` is that of the disk.

    `created` is in seconds since the epoch, `seconds` is how long it took to make.
    """

    key: str
    ancestors: tuple[LayerId, ...]
    op: str
    created: float
    seconds: float
    files: tuple[File, ...]
    size: int
    slices: tuple[Slice, ...]

    @property
    def id(self) -> LayerId:
        return keys.layer_id(self.key)

    @property
    def lengths(self) -> Iterator[tuple[str, int]]:
        """The digest and the length of what is in each blob, in the order of the manifest."""
        for file in self.files:
            for number, digest in enumerate(file.digests):
                yield digest, min(SLICE, file.size - number * SLICE)
        for piece in self.slices:
            if piece.data:
                yield piece.digest, piece.length

    @property
    def parent(self) -> LayerId | None:
        return self.ancestors[0] if self.ancestors else None


def content_of(below: str, size: int, slices: Sequence[Slice]) -> str:
    """What a guest reads from a layer's disk, as a digest; `below` is that of the parent.

    That of a base is its id, because its key has the digest of its disk. The same layer may have been made twice,
    with other bytes: then the layers that were built on one of them do not fit on the other.
    """
    return hashlib.sha256(packed({"parent": below, **_image(size, slices)})).hexdigest()


def dump_config(config: Config) -> bytes:
    """The config as JSON."""
    return packed(
        {
            "format": 1,
            "key": config.key,
            "ancestors": config.ancestors,
            "op": config.op,
            "created": config.created,
            "seconds": config.seconds,
            "files": [file._asdict() for file in config.files],
            "image": _image(config.size, config.slices),
        }
    )


def _image(size: int, slices: Sequence[Slice]) -> dict[str, Any]:
    return {"size": size, "slices": [each._asdict() for each in slices]}


def dump_manifest(config: Config, data: bytes, blobs: Sequence[Blob], content: str) -> bytes:
    """The manifest of a layer whose config is `data`; `blobs` are in the order of `Config.lengths`.

    ObuildError if it would be larger than registries take.
    """
    files = sum(len(file.digests) for file in config.files)
    layers = [
        {"mediaType": _FILE if number < files else _SLICE, **blob._asdict()} for number, blob in enumerate(blobs)
    ]
    annotations = {
        _CREATED: datetime.fromtimestamp(config.created, UTC).isoformat(timespec="seconds"),
        CONTENT: content,
        OP: " ".join(config.op.encode("utf-8", "replace").decode().split())[:200],
        **({PARENT: config.parent} if config.parent else {}),
    }
    manifest = packed(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": ARTIFACT,
            "config": descriptor(data, CONFIG),
            "layers": layers,
            "annotations": annotations,
        }
    )
    if len(manifest) > LARGEST_MANIFEST:
        raise ObuildError(f"layer {config.id[:12]} has too much data for a manifest, which takes about 100 GiB")
    return manifest


class Manifest(NamedTuple):
    """The manifest of a layer: its config, its other blobs, and what its annotations say."""

    digest: str
    size: int
    config: Blob
    blobs: tuple[Blob, ...]
    content: str
    parent: LayerId | None
    op: str
    created: str

    @property
    def descriptor(self) -> Descriptor:
        return {"mediaType": MANIFEST, "digest": self.digest, "size": self.size}

    @property
    def total(self) -> int:
        """How much the layer takes in the remote, in bytes."""
        return self.size + self.config.size + sum(size for _, size in dict(self.blobs).items())


def read_manifest(data: bytes) -> Manifest:
    """Read a manifest. ValueError if it is not that of a layer, or too large."""
    if len(data) > LARGEST_MANIFEST:
        raise ValueError(f"its manifest has more than {LARGEST_MANIFEST >> 20} MiB")
    found = _load(data)
    if found.get("artifactType") != ARTIFACT:
        raise ValueError(f"it is not a layer of obuild, but {_short(found.get('artifactType') or 'an image')}")
    notes = _of(dict, found.get("annotations"))
    parent = notes.get(PARENT)
    return Manifest(
        digest_of(data),
        len(data),
        _blob(found.get("config"), LARGEST_CONFIG),
        tuple(_blob(each, bound(SLICE)) for each in _of(list, found.get("layers"))),
        _matching(ID, notes.get(CONTENT)),
        None if parent is None else LayerId(_matching(ID, parent)),
        _short(notes.get(OP, "")),
        _short(notes.get(_CREATED, "")),
    )


def read_config(data: bytes, manifest: Manifest, id: LayerId) -> Config:
    """Read the config of the layer `id`. ValueError if it is not that, or does not fit the manifest."""
    found = _load(data)
    if found.get("format") != 1:
        raise ValueError(f"it has format {_short(found.get('format'))}, and this obuild knows only 1")
    image = _of(dict, found.get("image"))
    size = _number(image.get("size"), LARGEST)
    config = Config(
        _of(str, found.get("key")),
        tuple(LayerId(_matching(ID, each)) for each in _of(list, found.get("ancestors"))),
        _of(str, found.get("op")),
        _time(found.get("created")),
        _time(found.get("seconds")),
        tuple(_file(each) for each in _of(list, found.get("files"))),
        size,
        tuple(_slice(each, size) for each in _of(list, image.get("slices"))),
    )
    if config.id != id:
        raise ValueError(f"its key is that of the layer {config.id[:12]}")
    parent = keys.parent(config.key[: keys.HEAD].encode("utf-8", "surrogateescape"))
    if not parent == config.parent == manifest.parent:
        raise ValueError("its parent is not that in its key")
    starts = [each.offset for each in config.slices]
    if starts != sorted(set(starts)):
        raise ValueError("its slices are not in order")
    names = [file.name for file in config.files]
    if "log" not in names or len(names) != len(set(names)):
        raise ValueError("its files are not those of a layer")
    lengths = [length for _, length in config.lengths]
    if len(lengths) != len(manifest.blobs):
        raise ValueError(f"it has {len(lengths)} parts, and its manifest names {len(manifest.blobs)}")
    if any(blob.size > bound(length) for length, blob in zip(lengths, manifest.blobs, strict=True)):
        raise ValueError("a blob is larger than what is in it")
    return config


def _file(value: object) -> File:
    found = _of(dict, value)
    file = File(
        _matching(FILE, found.get("name")),
        _number(found.get("size"), LARGEST),
        tuple(_matching(DIGEST, each) for each in _of(list, found.get("digests"))),
    )
    if len(file.digests) != max(1, -(-file.size // SLICE)):
        raise ValueError(f"its file {file.name} has the wrong number of pieces")
    return file


def _slice(value: object, size: int) -> Slice:
    found = _of(dict, value)
    offset = _number(found.get("offset"), size)
    room = min(SLICE, size - offset)
    data, zeros = (_extents(found.get(name), room) for name in ("data", "zeros"))
    digest = _of(str, found.get("digest"))
    ordered = sorted([*data, *zeros])
    if offset % SLICE or any(sum(one) > other[0] for one, other in pairwise(ordered)):
        raise ValueError("the parts of a slice overlap")
    if bool(digest) != bool(data) or (digest and not DIGEST.fullmatch(digest)):
        raise ValueError("a slice has the wrong digest")
    return Slice(offset, digest, data, zeros)


def _extents(value: object, room: int) -> tuple[Extent, ...]:
    found = []
    for each in _of(list, value):
        start, length = (_number(number, SLICE) for number in _of(list, each))
        end = start + length
        if start % BLOCK or not length or end > room or (end % BLOCK and end != room):
            raise ValueError("a part of a slice is not in whole blocks")
        found.append((start, length))
    return tuple(found)


def _blob(value: object, most: int) -> Blob:
    found = _of(dict, value)
    return Blob(_matching(DIGEST, found.get("digest")), _number(found.get("size"), most))


def _number(value: object, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise ValueError(f"it has {_short(value)} where a number up to {most} belongs")
    return value


def _time(value: object) -> float:
    if not isinstance(value, int | float) or not 0 <= value < _END_OF_TIME:
        raise ValueError(f"it has {_short(value)} where a number of seconds belongs")
    return float(value)


def _matching(pattern: re.Pattern[str], value: object) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"it has {_short(value)} where something else belongs")
    return value


def _of(kind: Any, value: object) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"it has {_short(value)} where something else belongs")
    return value


def _load(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return dict(_of(dict, found))


def _short(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return "".join(each if each.isprintable() else "?" for each in text)[:200]
