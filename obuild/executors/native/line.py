"""Runs our scripts and commands in containers, with the interface of a connection to a guest."""

from __future__ import annotations

import itertools
import os
import re
import selectors
import shutil
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from obuild.errors import MachineError
from obuild.executors.native import container
from obuild.executors.native.container import Bind, Limits
from obuild.executors.native.namespace import Namespace
from obuild.host import process
from obuild.host.fs import in_memory
from obuild.host.marks import MarkReader, new_mark
from obuild.host.tail import Tail
from obuild.plan.archive import Sink

_CHUNK = 1 << 18

#: A line of runc's log.
_LOGGED = re.compile(r'^time="[^"]*" level=\w+ msg="(.*)"$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Line:
    """Each command runs in a container of its own, on the guest's root: what it leaves running ends with it.

    `root` is the folder of the guest's root and `work` one in memory, both inside the namespace. Every method
    raises MachineError if the container cannot be made, or is lost.
    """

    namespace: Namespace
    root: Path
    work: Path
    runtime: str
    limits: Limits
    hostname: str = "obuild"
    network: bool = False
    binds: Sequence[Bind] = ()
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def mounting(self, binds: Sequence[Bind]) -> Line:
        """The same line, for containers that have these mounts, too."""
        return replace(self, binds=(*self.binds, *binds))

    def run(self, command: str, script: Callable[[str], bytes], output: Callable[[bytes], object]) -> int:
        """As ssh.Connection.run."""
        mark = new_mark()
        reader = MarkReader(f"{mark} ".encode(), output)
        said = Tail()
        with in_memory("script", script(mark)) as file, self._container(command, file) as child:
            _listen(child, reader.feed, said)
        if reader.status is None:
            reader.flush()
            raise self._lost(said)
        return reader.status

    def check(self, command: str, script: bytes, *, what: str) -> None:
        """As ssh.Connection.check."""
        said = Tail()
        with in_memory("script", script) as file, self._container(command, file) as child:
            _listen(child, said, said)
        _see(child, said, what)

    def stream(self, command: str, send: Callable[[Any], None], *, what: str) -> None:
        """As ssh.Connection.stream."""
        said = Tail()
        with self._container(command, subprocess.PIPE) as child:
            listener = threading.Thread(target=_drain, args=(child, said), daemon=True)
            listener.start()
            assert child.stdin is not None
            try:
                with child.stdin:
                    send(child.stdin)
            except BrokenPipeError:  # it ended before it had read everything; its output says why
                pass
            listener.join()
        _see(child, said, what)

    def fetch(self, command: str, script: bytes, out: Sink, *, what: str) -> None:
        """As ssh.Connection.fetch."""
        said = Tail()
        with in_memory("script", script) as file, self._container(command, file) as child:
            _listen(child, out.write, said)
        _see(child, said, what)

    def put(self, source: Path, dest: str) -> None:
        """Send one file."""
        with source.open("rb") as file:
            self.stream(f"cat >{dest}", lambda sink: shutil.copyfileobj(file, sink), what=f"sending {dest}")

    def get(self, source: str, dest: Path) -> None:
        """Fetch one file."""
        with dest.open("wb") as out:
            self.fetch("sh", f"exec cat {source}\n".encode(), out, what=f"fetching {source}")

    def interact(self, command: str) -> int:
        """Run a command at our own stdin and stdout, with a terminal if they are one. Return its exit status.

        crun 1.8 does not tell the container when our terminal changes its size, so runc does this if it can.
        """
        line = replace(self, runtime="runc") if shutil.which("runc") else self
        return process.foreground(line._command(command, terminal=os.isatty(0) and os.isatty(1)))

    @contextmanager
    def _container(self, command: str, stdin: IO[bytes] | int) -> Iterator[subprocess.Popen[bytes]]:
        with process.piped(self._command(command), stdin=stdin) as child:
            yield child

    def _command(self, command: str, *, terminal: bool = False) -> list[process.Arg]:
        """Describe the next container, and return the command line that runs it.

        Its first process is a shell that waits for the command, and meanwhile for every process without a parent.
        """
        self._see_folders()
        number = next(self._numbers)
        name = container.name_of(self.namespace.pid, number)
        bundle = self.work / f"container-{number}"
        about = container.describe(
            self.root,
            ["/bin/sh", "-c", f"( {command}\n)\nexit $?"],
            self.binds,
            name=name,
            hostname=self.hostname,
            network=self.network,
            terminal=terminal,
            limits=self.limits,
        )
        folder = self.namespace.path(bundle)
        folder.mkdir()
        (folder / "config.json").write_text(about, encoding="utf-8", errors="surrogateescape")
        return self.namespace.enter(container.command(self.runtime, self.work / "runtime", bundle, name))

    def _see_folders(self) -> None:
        """MachineError if a link is where the container mounts: crun 1.8 would follow it to the host.

        No process of the guest runs now, and none can replace what is mounted.
        """
        for path in container.FRESH:
            place = self.namespace.path(Path(f"{self.root}{path}"))
            if os.path.lexists(place) and not stat.S_ISDIR(place.lstat().st_mode):
                raise MachineError(f"nothing can be mounted on {path} in the guest: it is not a folder")

    def _lost(self, said: Tail) -> MachineError:
        reason = f":\n{_plain(said.text)}" if said.text else ""
        return MachineError(f"the container ended before the command did{reason}")


def _listen(
    child: subprocess.Popen[bytes], out: Callable[[bytes], object], err: Callable[[bytes], object]
) -> None:
    """Pass on stdout and stderr until both have ended."""
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout or 0, selectors.EVENT_READ, out)
        selector.register(child.stderr or 0, selectors.EVENT_READ, err)
        while selector.get_map():
            for key, _ in selector.select():
                if data := os.read(key.fd, _CHUNK):
                    key.data(data)
                else:
                    selector.unregister(key.fileobj)


def _drain(child: subprocess.Popen[bytes], said: Tail) -> None:
    with suppress(OSError, ValueError):  # an interrupt has closed the pipes
        _listen(child, said, said)


def _see(child: subprocess.Popen[bytes], said: Tail, what: str) -> None:
    if child.wait() != 0:
        raise MachineError(f"{what} failed in the guest: {_plain(said.text)}")


def _plain(text: str) -> str:
    """Text with the messages of runc's log in place of its lines."""
    return _LOGGED.sub(lambda line: line[1].replace('\\"', '"'), text)
