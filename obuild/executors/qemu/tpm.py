"""A TPM 2.0 for a machine, emulated by swtpm.

swtpm serves one client and ends with its connection: https://github.com/stefanberger/swtpm/wiki, man swtpm.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from obuild.host.process import Arg, CancelScope
from obuild.host.regular import open_folder


def swtpm_argv(*, control: int, state: int) -> list[Arg]:
    """Return swtpm's command line, with the file descriptors of its control channel and of the state's folder."""
    return [
        *("swtpm", "socket", "--tpm2", "--terminate"),
        *("--tpmstate", f"dir=/proc/self/fd/{state}"),  # a path could have commas, which end an option
        *("--ctrl", f"type=unixio,clientfd={control}"),
    ]


def tpm_argv(device: str, backend: str) -> list[Arg]:
    """Return QEMU's options for a TPM; `backend` is the chardev backend that leads to swtpm."""
    return [
        *("-chardev", f"{backend},id=tpm"),
        *("-tpmdev", "emulator,id=tpm0,chardev=tpm"),
        *("-device", f"{device},tpmdev=tpm0"),
    ]


@contextmanager
def started(state: Path, scope: CancelScope, stderr: IO[bytes]) -> Iterator[socket.socket]:
    """Start a TPM that keeps its state in the folder `state`, and yield QEMU's end of the control channel.

    It ends when that end is closed in every process, and at the latest when the block ends. UsageError, naming the
    package, if swtpm is not installed.
    """
    state.mkdir(exist_ok=True)
    ours, theirs = socket.socketpair()
    with ExitStack() as stack:
        stack.enter_context(ours)
        folder = open_folder(state)
        try:
            with theirs:
                argv = swtpm_argv(control=theirs.fileno(), state=folder)
                stack.enter_context(scope.spawned(argv, stderr=stderr, pass_fds=[theirs.fileno(), folder]))
        finally:
            os.close(folder)
        yield ours
