"""The disk in a qcow2 image, read in place: qemu-storage-daemon serves it to us alone, and we are its NBD client.

Nothing is unpacked, so the first byte of a disk comes at once, however large that is. The protocol:
https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
"""

from __future__ import annotations

import json
import socket
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from obuild.errors import ObuildError, words
from obuild.host import process
from obuild.host.blocks import beyond
from obuild.host.fs import in_memory
from obuild.host.tail import end_of

PROGRAM = "qemu-storage-daemon"

_GREETING = struct.Struct(">8s8sH")
_OPTION = struct.Struct(">8sII")
_OPTION_REPLY = struct.Struct(">QIII")
_EXPORT_INFO = struct.Struct(">HQH")
_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")

#: Fixed newstyle negotiation, and no padding after it.
_FLAGS = 3
_GO, _ACK, _INFO, _EXPORT = 7, 1, 3, 0
_REQUEST_MAGIC, _REPLY_MAGIC, _READ = 0x25609513, 0x67446698, 0

#: The most that is asked for at once, in bytes; servers refuse more than 32 MiB.
_MOST = 1 << 20


class _Lost(Exception):
    """The server does not answer as it should, or is gone."""


class Nbd:
    """A disk behind an open connection. See `Blocks`."""

    path: Path | None = None

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        magic, option, _ = _GREETING.unpack(self._exactly(_GREETING.size))
        if (magic, option) != (b"NBDMAGIC", b"IHAVEOPT"):
            raise _Lost("this is no NBD server")
        wish = struct.pack(">IH", 0, 0)  # the export without a name, and all that is to know
        self._send(struct.pack(">I", _FLAGS) + _OPTION.pack(b"IHAVEOPT", _GO, len(wish)) + wish)
        self.size = self._negotiated()

    def _negotiated(self) -> int:
        """The size of the disk, from the replies to our only option."""
        size = 0
        while True:
            _, _, kind, length = _OPTION_REPLY.unpack(self._exactly(_OPTION_REPLY.size))
            data = self._exactly(length)
            if kind == _ACK:
                return size
            if kind != _INFO:
                raise _Lost(f"the NBD server answers {kind:#x}: {data.decode(errors='replace')}")
            if struct.unpack_from(">H", data)[0] == _EXPORT:
                _, size, _ = _EXPORT_INFO.unpack(data)

    def read(self, offset: int, length: int) -> bytes:
        """See `Blocks.read`."""
        if not 0 <= offset <= offset + length <= self.size:
            raise beyond(offset)
        pieces = [
            self._piece(at, min(_MOST, offset + length - at)) for at in range(offset, offset + length, _MOST)
        ]
        return b"".join(pieces)

    def _piece(self, offset: int, length: int) -> bytes:
        self._send(_REQUEST.pack(_REQUEST_MAGIC, 0, _READ, offset, offset, length))
        magic, error, handle = _REPLY.unpack(self._exactly(_REPLY.size))
        if error or (magic, handle) != (_REPLY_MAGIC, offset):
            raise ObuildError(f"the disk cannot be read at byte {offset}: error {error} of {PROGRAM}")
        return self._exactly(length)

    def _send(self, data: bytes) -> None:
        try:
            self._connection.sendall(data)
        except OSError as error:
            raise _Lost(words(error)) from error

    def _exactly(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            try:
                piece = self._connection.recv(length - len(data))
            except OSError as error:
                raise _Lost(words(error)) from error
            if not piece:
                raise _Lost("it has closed the connection")
            data += piece
        return bytes(data)


@contextmanager
def disk_of(image: Path) -> Iterator[Nbd]:
    """Open the disk in a qcow2 image and in all images below it. ObuildError if it cannot be read."""
    with (
        in_memory("nbd") as told,
        tempfile.TemporaryDirectory(prefix="obuild-nbd-") as folder,
        socket.socket(socket.AF_UNIX) as listening,
        socket.socket(socket.AF_UNIX) as connection,
    ):
        # We are connected before anybody else could be: only we can enter the folder.
        place = f"{folder}/socket"
        listening.bind(place)
        listening.listen(1)
        connection.connect(place)
        with process.CancelScope().spawned(
            _argv(image, listening.fileno()), stderr=told, pass_fds=[listening.fileno()]
        ):
            listening.close()  # if the daemon ends, so does the connection
            try:
                yield Nbd(connection)
            except _Lost as error:
                raise ObuildError(f"{image} cannot be read: {end_of(told) or error}") from error


def _argv(image: Path, listening: int) -> list[process.Arg]:
    disk = {
        "driver": "qcow2",
        "node-name": "disk",
        "read-only": True,
        "file": {"driver": "file", "filename": str(image)},
    }
    return [
        PROGRAM,
        *("--blockdev", json.dumps(disk)),
        *("--nbd-server", f"addr.type=fd,addr.str={listening},max-connections=1"),
        *("--export", "type=nbd,id=disk,node-name=disk,name="),
    ]
