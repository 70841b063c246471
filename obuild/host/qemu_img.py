"""Disk images: inspect, check and convert them, and make overlays. The only caller of qemu-img and qemu-io.

qcow2: https://www.qemu.org/docs/master/interop/qcow2.html
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from obuild.errors import ObuildError, ProcessError, UsageError
from obuild.host import process, qcow2, shortage
from obuild.host.fs import in_memory
from obuild.host.regular import NotAFile, open_file

Format = Literal["qcow2", "raw"]

#: Hears from time to time how many bytes of its files qemu-img has read.
Progress = Callable[[int], object] | None

#: Small writes into large clusters are slow and take much space. Subclusters (extended L2) avoid that: 20,000
#: scattered 4 KiB writes took 0.21 s and 79 MiB, against 1.64 s and 1,251 MiB with the defaults.
OVERLAY_OPTIONS = "extended_l2=on,cluster_size=128k"

#: The size of the block of a disk that is reserved for a key, in bytes.
KEY_BLOCK = 4096

#: An upper bound of the images that QEMU opens in one chain.
_LONGEST = 256

_MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4s4xQI4xQ")  # magic, version, offset of the backing file's name, its length, disk size
_FOREIGN = {
    b"KDMV": "a VMDK image",
    b"vhdxfile": "a VHDX image",
    b"conectix": "a VHD image",
    b"\x1f\x8b": "gzip-compressed",
    b"\xfd7zXZ": "xz-compressed",
    b"\x28\xb5\x2f\xfd": "zstd-compressed",
    b"BZh": "bzip2-compressed",
}


class Image(NamedTuple):
    """An image file. `virtual_size` is the size of the disk that the guest sees, in bytes."""

    path: Path
    format: Format
    virtual_size: int


def inspect(path: Path) -> Image:
    """Find out what kind of disk image `path` is, from its content and never from its name.

    UsageError if it is not a disk, is damaged or truncated, or refers to other files on the host
    (a backing or data file), which a guest could then read.
    """
    kind = detect(path)
    try:
        info = json.loads(process.run(["qemu-img", "info", "--output=json", "-f", kind, path]))
    except ProcessError as error:
        raise UsageError(f"{path} is not a disk image that QEMU can open: {_last_line(error)}") from error
    if kind == "qcow2":
        _refuse_references(path, info)
        if info.get("encrypted"):
            raise UsageError(
                f"{path} is encrypted, and no guest could boot from it", hint="decrypt it: qemu-img convert"
            )
        check(path)
    return Image(path, kind, int(info["virtual-size"]))


def detect(path: Path) -> Format:
    """`qcow2` or `raw`, from the first bytes. UsageError if it is not a bootable disk."""
    if path.exists() and not (path.is_file() or path.is_block_device()):  # opening a pipe would block
        raise UsageError(f"cannot read the image {path}: it is not a file")
    try:
        with open_file(path, follow=True) as file:
            head = file.read(2048)
    except OSError as error:
        raise UsageError(f"cannot read the image {path}: {error.strerror}") from error
    if head.startswith(_MAGIC):
        return "qcow2"
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            raise UsageError(
                f"{path} is {what}, not a qcow2 or raw disk",
                hint="unpack it, or convert it with: qemu-img convert -O qcow2 IN OUT",
            )
    # Any disk that firmware can boot has a boot signature there: that of an MBR, or of GPT's protective MBR.
    if head[510:512] != b"\x55\xaa":
        size = path.stat().st_size
        raise UsageError(
            f"{path} is not a disk image: no qcow2 header and no boot sector in its {size} bytes",
            hint="a base image is a qcow2 file, or a raw disk with an MBR or GPT",
        )
    return "raw"


def check(path: Path) -> None:
    """UsageError unless the qcow2 image's tables are consistent with each other and with the file's length.

    ProcessError, OSError if this host has too little memory or too many open files to see that.
    """
    _see_files(path)
    try:
        # 3: leaked clusters only, which waste space but do no harm
        process.run(["qemu-img", "check", "-q", "-f", "qcow2", path], ok=(0, 3))
    except ProcessError as error:
        shortage.see(error)
        raise UsageError(f"{path} is damaged or truncated: {_last_line(error)}") from error


def _see_files(path: Path) -> None:
    """UsageError if an image of the chain is not a file: QEMU opens all of them, and a named pipe blocks it."""
    image = path.resolve()  # a base image may be a symlink
    for _ in range(_LONGEST):
        try:
            backing = backing_file(image)
        except NotAFile as error:
            raise UsageError(f"{path} is based on {image}: {error.strerror}") from error
        except (OSError, ValueError):
            return  # QEMU's own message is better
        if not backing:
            return
        image = Path(os.path.normpath(image.parent / backing))


def create_overlay(path: Path, backing: str, *, size: int | None = None) -> None:
    """Create an empty qcow2 overlay at the new file `path`, as large as its backing file, or of `size` bytes.

    `backing` is written as given: relative to the folder of `path`, so that the store can be moved. It need not
    exist yet if `size` is given. Nothing is flushed.
    """
    if size is None:
        below = path.parent / backing
        try:
            size = virtual_size(below)
        except ValueError as error:
            raise ObuildError(f"{below} cannot be used: {error}") from error
    with qcow2.Writer(path, size, (), backing=backing):  # qemu-img takes a hundred times as long, and flushes it
        pass


def create_empty(path: Path, *, size: int) -> None:
    """A qcow2 at `path` that holds nothing, with a disk of `size` bytes."""
    with qcow2.Writer(path, size, ()):
        pass


def create_grown(path: Path, source: Image, *, size: int) -> None:
    """Create an empty overlay at `path` on an image of any format, with a disk of `size` bytes."""
    options = ["-o", OVERLAY_OPTIONS, "-b", str(source.path), "-F", source.format]
    process.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, path, str(size)])


def flat_copy(path: Path, out: Path) -> None:
    """Create a stand-alone qcow2 at `out` with the content of `path` and all images below it."""
    process.run(["qemu-img", "convert", "-q", "-W", "-f", "qcow2", "-O", "qcow2", path, out])


def extract_head(image: Image, out: Path, length: int) -> None:
    """Write the first `length` bytes of an image's disk to `out`; `length` is a multiple of the sector size."""
    count = [f"bs={length}", "count=1", f"if={image.path}", f"of={out}"]
    process.run(["qemu-img", "dd", "-f", image.format, "-O", "raw", *count])


def extract(image: Image, descriptor: int, start: int, length: int) -> None:
    """Write a part of the disk in an image, in bytes, to an open file that is a hole of that length."""
    layers = f"file.driver={image.format},file.file.driver=file,file.file.filename={escaped(image.path)}"
    source = ["--image-opts", f"driver=raw,offset={start},size={length},{layers}"]
    out = f"/proc/{os.getpid()}/fd/{descriptor}"
    process.run(["qemu-img", "convert", "-n", "--target-is-zero", *source, "-O", "raw", out])


def escaped(path: Path) -> str:
    """Escape a path for QEMU's option parser, in which a comma ends a value and two stand for one."""
    return str(path).replace(",", ",,")


def rebase(path: Path, backing: str) -> None:
    """Change the backing file of an overlay to another with the same content."""
    process.run(["qemu-img", "rebase", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", "qcow2", path])


def flatten(path: Path, top: str, bottom: str, *, progress: Progress = None) -> None:
    """Create an overlay at `path` on the image `bottom` with the content of `top`, which is some images above it.

    It holds what the images in between have written. Both names are written as given, as in `create_overlay`.
    Nothing is flushed: the caller must fsync it.
    """
    create_overlay(path, top)
    # This reads only what is allocated above `bottom`; 280 MiB in 16 images took 1 s. (QEMU's block-stream took as
    # long, and its overlay was half as large again: it copies whole clusters.)
    command = ("qemu-img", "rebase", "-q", "-f", "qcow2", "-t", "unsafe")
    process.run([*command, "-b", bottom, "-F", "qcow2", path], progress=progress)


def backing_file(path: Path) -> str:
    """The backing file that a qcow2 image's header names, "" if none. ValueError if it is not qcow2."""
    with open_file(path) as file:
        offset, size, _ = _header(file)
        file.seek(offset)
        return file.read(min(size, 1023)).decode("utf-8", "surrogateescape")


def virtual_size(path: Path) -> int:
    """The size of the disk in a qcow2 image, in bytes. ValueError if it is not qcow2."""
    with open_file(path) as file:
        return _header(file)[2]


def _header(file: BinaryIO) -> tuple[int, int, int]:
    """The offset and length of the backing file's name, and the size of the disk."""
    head = file.read(_HEADER.size)
    if len(head) < _HEADER.size:
        raise ValueError("its image is cut off")
    magic, offset, length, size = _HEADER.unpack(head)
    if magic != _MAGIC:
        raise ValueError("its image is not qcow2")
    return offset, length, size


def import_image(source: Image, path: Path) -> None:
    """Copy `source` to `path` as a stand-alone qcow2; blocks are shared where the file system can."""
    if source.format == "qcow2":
        copy(source.path, path)
    else:
        process.run(["qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", source.path, path])


def write_at(image: Path, offset: int, content: bytes) -> None:
    """Write to the disk in a qcow2 image. `offset` and the length are in whole sectors."""
    with in_memory("block", content) as file:
        block = f"/proc/{os.getpid()}/fd/{file.fileno()}"
        process.run(["qemu-io", "-f", "qcow2", "-c", f"write -q -s {block} {offset} {len(content)}", image])


def copy(source: Path, dest: Path) -> None:
    """Copy a file; blocks are shared where the file system can, and holes stay holes."""
    # in English, so that a full disk can be recognized by the message
    process.run(["cp", "--reflink=auto", "--sparse=auto", "--", source, dest], env={"LC_ALL": "C.UTF-8"})


def pack(raw: Path, path: Path, *, compression: str = "zstd", progress: Progress = None) -> None:
    """Copy a raw disk to a qcow2 image, compressed by zstd, which costs nothing measurable when a guest boots from
    it, by zlib, or not at all ("none")."""
    compress = [] if compression == "none" else ["-c", "-o", f"compression_type={compression}"]
    process.run(["qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", *compress, raw, path], progress=progress)


def convert_raw(raw: Path, path: Path, format: str, options: str = "", *, progress: Progress = None) -> None:
    """Copy a raw disk to an image of a foreign format; in order, so that the same disk gives the same layout."""
    chosen = ["-o", options] if options else []
    process.run(["qemu-img", "convert", "-q", "-f", "raw", "-O", format, *chosen, raw, path], progress=progress)


def unpack(image: Path, raw: Path, *, progress: Progress = None) -> None:
    """Write the disk in a qcow2 image, and in all images below it, to a raw file with holes."""
    # A third quicker than in order and 8 at a time; a raw file is the same in whatever order it is written.
    how = ("-W", "-m", "16")
    process.run(["qemu-img", "convert", "-q", *how, "-f", "qcow2", "-O", "raw", image, raw], progress=progress)


def chain(image: Path) -> list[Path]:
    """A qcow2 image and those below it."""
    found = [image]
    while backing := backing_file(found[-1]):
        found.append(Path(os.path.normpath(found[-1].parent / backing)))
    return found


def allocation(image: Path) -> list[tuple[int, int, Path | None]]:
    """Which image of a chain has each part of the disk: offset, length, and the image; None where it is zeros."""
    images = chain(image)
    told = json.loads(process.run(["qemu-img", "map", "-f", "qcow2", "--output=json", image]))
    return [(part["start"], part["length"], images[part["depth"]] if part["data"] else None) for part in told]


class Part(NamedTuple):
    """A part of a disk that an image holds itself. `offset` is where its bytes are in the file.

    It is None where they are compressed, and where the part is zeros.
    """

    start: int
    length: int
    zero: bool
    offset: int | None


def own_parts(image: Path) -> list[Part]:
    """What a qcow2 image holds, in order, without what it leaves to the image below, which is not opened."""
    alone = {"driver": "qcow2", "backing": None, "file": {"driver": "file", "filename": str(image)}}
    told = json.loads(process.run(["qemu-img", "map", "--output=json", f"json:{json.dumps(alone)}"]))
    return [
        Part(part["start"], part["length"], not part["data"], part.get("offset") if part["data"] else None)
        for part in told
        if part["present"]
    ]


def _refuse_references(path: Path, info: dict[str, object]) -> None:
    backing = info.get("backing-filename")
    specific = info.get("format-specific")
    data = specific.get("data", {}) if isinstance(specific, dict) else {}
    other = backing or data.get("data-file")
    if other:
        raise UsageError(
            f"{path} needs another file, {str(other)[:200]}", hint="flatten it: qemu-img convert -O qcow2 IN OUT"
        )


def _last_line(error: ProcessError) -> str:
    return error.message.strip().splitlines()[-1].removeprefix("qemu-img: ")
