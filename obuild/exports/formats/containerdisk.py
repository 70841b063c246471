"""A container image that KubeVirt runs as a machine: one qcow2 disk, and nothing else.

The disk is /disk/disk.img, owned by 107, which is QEMU's user in KubeVirt. The result is an OCI image layout
(https://github.com/opencontainers/image-spec 1.1): a folder, or one tar file, called oci-archive by skopeo.
Nothing in it tells when or where it was made.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from obuild.exports.disk import Disk
from obuild.exports.formats import qcow2
from obuild.remotes.oci import CONFIG, MANIFEST, Descriptor, descriptor, index, packed

#: The user and group of the disk.
QEMU_USER = 107

#: What Go, and so every container tool, calls an architecture.
ARCHES = {"x86_64": "amd64", "aarch64": "arm64"}

_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_CHUNK = 1 << 20

#: The labels that say which machine an image is made for: `instancetype.kubevirt.io/default-instancetype`.
_MACHINE = "instancetype.kubevirt.io/"
_EPOCH = "1970-01-01T00:00:00Z"


def write(disk: Disk, out: Path) -> None:
    """See `Format.write`. `out` becomes a folder."""
    image = disk.path.with_name("disk.img")
    qcow2.write(disk, image)
    blobs = out / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    diff_id, layer = _put_layer(image, blobs, disk.reading(image.stat().st_size))
    image.unlink()
    arch = ARCHES.get(disk.card.arch, disk.card.arch)
    config = {
        "architecture": arch,
        "os": "linux",
        "created": _EPOCH,
        "config": _settings(disk),
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": _EPOCH, "created_by": "obuild export"}],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": _put(config, CONFIG, blobs),
        "layers": [layer],
    }
    described = _put(manifest, MANIFEST, blobs)
    (out / "index.json").write_bytes(index([{**described, "platform": {"architecture": arch, "os": "linux"}}]))
    (out / "oci-layout").write_bytes(packed({"imageLayoutVersion": "1.0.0"}))


def _settings(disk: Disk) -> dict[str, Any]:
    """What a container of this image would have.

    KubeVirt's importer (CDI) takes the defaults for machines from variables that are named after their labels:
    https://github.com/kubevirt/containerized-data-importer/blob/main/doc/image-from-registry.md
    """
    given = dict(disk.options.labels)
    settings: dict[str, Any] = {"Labels": {"org.opencontainers.image.title": disk.layer[:12], **given}}
    variables = [f"{_variable(key)}={value}" for key, value in given.items() if key.startswith(_MACHINE)]
    return {**settings, "Env": variables} if variables else settings


def _variable(label: str) -> str:
    return re.sub(r"[./-]", "_", label).upper()


def write_archive(disk: Disk, out: Path) -> None:
    """As `write`, but `out` becomes a tar file."""
    layout = out.with_name(f"{out.name}.layout")
    write(disk, layout)
    with tarfile.open(out, "w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(layout.rglob("*")):
            entry = tarfile.TarInfo(str(path.relative_to(layout)))
            if path.is_dir():
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(entry)
            else:
                entry.size = path.stat().st_size
                with path.open("rb") as file:
                    tar.addfile(entry, file)


def _put_layer(image: Path, blobs: Path, heard: Callable[[int], object]) -> tuple[str, Descriptor]:
    """Write the only layer; returns the digest of its tar, and its descriptor. `heard` gets the bytes read."""
    plain, zipped = hashlib.sha256(), hashlib.sha256()
    written = blobs / "layer"
    # The disk is compressed already: more than the least effort gains 3 %.
    deflate = zlib.compressobj(1, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    with image.open("rb") as source, written.open("wb") as file:

        def put(data: bytes) -> None:
            zipped.update(data)
            file.write(data)

        for data in _tar(source, image.stat().st_size):
            plain.update(data)
            put(deflate.compress(data))
            heard(source.tell())
        put(deflate.flush())
    digest = zipped.hexdigest()
    size = written.stat().st_size
    written.rename(blobs / digest)
    return f"sha256:{plain.hexdigest()}", {"mediaType": _LAYER, "digest": f"sha256:{digest}", "size": size}


def _tar(source: BinaryIO, size: int) -> Iterator[bytes]:
    """The layer's tar in pieces: the folder and the disk."""
    folder = tarfile.TarInfo("disk")
    folder.type, folder.mode = tarfile.DIRTYPE, 0o555
    file = tarfile.TarInfo("disk/disk.img")
    file.mode, file.size = 0o444, size
    for entry in (folder, file):
        entry.uid = entry.gid = QEMU_USER
        yield entry.tobuf(tarfile.GNU_FORMAT)
    while data := source.read(_CHUNK):
        yield data
    yield bytes(-size % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE)


def _put(value: dict[str, Any], kind: str, blobs: Path) -> Descriptor:
    """Write a JSON blob; returns its descriptor."""
    data = packed(value)
    found = descriptor(data, kind)
    (blobs / found["digest"].removeprefix("sha256:")).write_bytes(data)
    return found
