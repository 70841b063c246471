"""The image of a draft as a raw disk: QEMU's storage daemon exports it through FUSE.

https://www.qemu.org/docs/master/tools/qemu-storage-daemon.html
"""

from __future__ import annotations

import json
import os
import select
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from obuild.errors import MachineError
from obuild.executors import overlay
from obuild.executors.native.namespace import Namespace
from obuild.executors.qmp import Qmp, QmpLost
from obuild.host import process
from obuild.host.fs import in_memory
from obuild.host.nbd import PROGRAM
from obuild.host.tail import end_of

#: The name of the raw disk.
DISK = "disk"

#: In seconds, for a host that swaps.
START_TIMEOUT = 60.0

#: How long it may take to end, in seconds, before it is killed.
END_TIMEOUT = 10.0


class Storage:
    """A running daemon. Its disk is the newest of its images."""

    def __init__(self, qmp: Qmp) -> None:
        self._qmp = qmp
        self._count = 0

    def put(self, path: Path) -> None:
        """Put an overlay on top: writes go there from now on. See `overlay.put`."""
        self._count += 1
        overlay.put(self._qmp, path, self._count)


@contextmanager
def opened(namespace: Namespace, image: Path, folder: Path) -> Iterator[Storage]:
    """Export an image as the raw file DISK in the empty `folder`. MachineError if that fails.

    The daemon has a mount namespace of its own, which shares this folder only. If it saw the file systems that are
    mounted from its disk, and were the last that does, the kernel would unmount them while it ends the daemon, and
    wait forever for the daemon to write to the disk.
    """
    namespace.mount_memory(folder)
    namespace.share(folder)
    namespace.path(folder / DISK).touch()
    ours, theirs = socket.socketpair()
    file = {"driver": "file", "filename": str(image), **overlay.OPTIONS}
    disk = {"driver": "qcow2", "node-name": overlay.node(0), "file": file, **overlay.OPTIONS}
    export = {
        "type": "fuse",
        "id": "export",
        "node-name": overlay.node(0),
        "mountpoint": str(folder / DISK),
        "writable": True,
        "allow-other": "off",
    }
    argv = [
        *("unshare", "--mount", "--propagation=unchanged", "--", PROGRAM),
        *("--chardev", f"socket,id=control,fd={theirs.fileno()}"),
        *("--blockdev", json.dumps(disk)),
        *("--export", json.dumps(export)),
        *("--monitor", "chardev=control"),
    ]
    with closing(Qmp(ours)) as qmp, in_memory("storage") as said:
        child = process.spawn(namespace.enter(argv), stderr=said, pass_fds=(theirs.fileno(),))
        theirs.close()
        try:
            try:
                qmp.negotiate(START_TIMEOUT)
            except QmpLost as error:
                raise MachineError(f"the image cannot be opened as a disk:\n{end_of(said)}") from error
            yield Storage(qmp)
        finally:
            # Nothing that counts is lost if it is killed. But the kernel would need a second for that.
            with suppress(MachineError):
                qmp.execute("quit")
                _await(child.pid)
            child.kill()
            child.wait()


def _await(pid: int) -> None:
    """Wait until a child has ended, up to `END_TIMEOUT`."""
    handle = os.pidfd_open(pid)
    try:
        select.select([handle], [], [], END_TIMEOUT)
    finally:
        os.close(handle)
