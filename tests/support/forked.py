"""Runs of the program in forks of a process that has already imported it.

Most of what a short command costs is the start of Python and its imports, and the tests run thousands of them.
Each run is a process of its own, with its own streams, environment, working folder and end; only its imports were
made before. What depends on how Python itself starts is tested with real starts.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import runpy
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import BinaryIO, NoReturn

import obuild
from obuild.host.fs import in_memory

#: What the program imports late.
LATE = ("paramiko", "scp", "sqlite_utils", "tarfile", "tests.support.fakes")


class Running:
    """A run that was started: its process, and what it has said so far."""

    def __init__(self, argv: Sequence[str], end: BinaryIO, out: BinaryIO, err: BinaryIO) -> None:
        self.argv, self.pid = argv, int(end.readline())
        self._end, self._out, self._err = end, out, err

    def said(self) -> tuple[str, str]:
        """Its stdout and its stderr."""
        files = (self._out, self._err)
        out, err = (os.pread(file.fileno(), 1 << 30, 0).decode(errors="surrogateescape") for file in files)
        return out, err

    def kill(self) -> None:
        """End it, if it still runs."""
        if not self._end.closed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def wait(self) -> subprocess.CompletedProcess[str]:
        """Wait for its end."""
        with self._end, self._out, self._err:
            return subprocess.CompletedProcess(self.argv, int(self._end.read()), *self.said())


def start(
    argv: Sequence[str],
    *,
    module: str = "obuild",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    limit: int = 0,
    late: str = "",
) -> Running:
    """Start `python -m module argv` with nothing on stdin. `env` is added to our own environment.

    It is killed after `limit` seconds, if that is not 0. What it is forked from has also imported `late`.
    """
    request = {"argv": [*argv], "module": module, "env": {**os.environ, **(env or {})}, "limit": limit}
    request["cwd"] = str(cwd or Path.cwd())
    ended, status = os.pipe()
    out, err = in_memory("stdout"), in_memory("stderr")
    with in_memory("request", json.dumps(request).encode()) as asked, Path(os.devnull).open("rb") as stdin:
        try:
            files = [asked.fileno(), status, stdin.fileno(), out.fileno(), err.fileno()]
            socket.send_fds(_server(late)[0], [b"x"], files)
        finally:
            os.close(status)
    return Running(argv, os.fdopen(ended, "rb"), out, err)


def run(
    argv: Sequence[str],
    *,
    module: str = "obuild",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    limit: int = 0,
) -> subprocess.CompletedProcess[str]:
    """As `start`, to its end."""
    return start(argv, module=module, env=env, cwd=cwd, limit=limit).wait()


@cache
def _server(late: str) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """The process that forks. It ends with ours, when it can read no more."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        argv = [sys.executable, "-m", "tests.support.forked", str(theirs.fileno()), late]
        return ours, subprocess.Popen(argv, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)


def _serve(server: socket.socket) -> str:
    """Fork for each request. Returns only in such a fork, when it has become what was asked for: its module."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    while True:
        data, files, _, _ = socket.recv_fds(server, 1, 16)
        if not data:
            os._exit(0)
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            server.close()
            asked, status, *streams = files
            if pid := os.fork():
                os.write(status, f"{pid}\n".encode())
                _, ended = os.waitpid(pid, 0)
                os.write(status, str(os.waitstatus_to_exitcode(ended)).encode())
                os._exit(0)
            os.close(status)
            return _become(asked, streams)
        for file in files:
            os.close(file)


def _become(asked: int, streams: Sequence[int]) -> str:
    """Take over the streams, the environment, the folder and the arguments of a request; return its module."""
    with os.fdopen(asked, "rb") as file:
        request = json.load(file)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = [request["module"], *request["argv"]]
    signal.alarm(request["limit"])
    return str(request["module"])


def _run(module: str) -> NoReturn:
    """Run a module and end, as Python would, but without the time it takes to free what was imported."""
    code: object = None
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def _import_all(late: str) -> None:
    found = [each.name for each in pkgutil.walk_packages(obuild.__path__, "obuild.")]
    for module in (*LATE, *found, *late.split()):
        if not module.endswith("__main__") and (late or ".farm." not in module):  # Dask takes a second to import
            with contextlib.suppress(ImportError):
                importlib.import_module(module)


if __name__ == "__main__":
    _import_all(sys.argv[2])
    gc.freeze()  # the forks share what is there now
    _run(_serve(socket.socket(fileno=int(sys.argv[1]))))
