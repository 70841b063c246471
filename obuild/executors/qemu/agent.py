"""Our end of the resident root shell in a warm guest. `guests.linux_agent` has the guest's end.

It has the interface of an SSH connection, for scripts and streams, but needs no login: a machine that was saved
and resumed answers at once.
"""

from __future__ import annotations

import contextlib
import select
import shutil
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from obuild.errors import MachineError
from obuild.executors.qemu.machine import Machine
from obuild.guests.posix import script as lines
from obuild.host.marks import MarkReader, new_mark
from obuild.host.tail import KEPT, Tail
from obuild.plan.archive import Sink

#: How many bytes are sent as one piece; the guest starts a program for each piece.
PIECE = 1 << 22

#: Scripts of up to this many bytes are sent as a line, which the guest's shell reads byte by byte.
SHORT = 4096

#: How long a resumed guest may take to thaw its disks, in seconds, before we give up and boot another.
THAW_TIMEOUT = 60.0

_CHUNK = 1 << 18


class Resident:
    """The shell in the guest of `machine`. Every method raises MachineError if the guest or the shell ends."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        machine.watched = True

    def run(self, command: str, script: Callable[[str], bytes], output: Callable[[bytes], object]) -> int:
        """As Connection.run, for a step's script. `command` is not needed, since the shell is root's."""
        mark = new_mark()
        inner = MarkReader(f"{mark} ".encode(), output)
        status = self._answer(self._ask("step", script(mark)), inner.feed)
        if inner.status is None:  # the script itself was killed, so it could not report how the command ended
            inner.flush()
            return status
        return inner.status

    def check(self, command: str, script: bytes, *, what: str) -> None:
        """As Connection.check."""
        self._finish(_Words(self._ask("check", script)), what)

    def stream(self, command: str, send: Callable[[Any], None], *, what: str) -> None:
        """As Connection.stream. If the command ends early, the rest is still sent, and the guest ignores it."""
        words = _Words(self._ask("stream", lines([command])))
        with contextlib.closing(_Pieces(partial(self._send, self.machine.data, words=words))) as sink:
            send(sink)
        self._finish(words, what)

    def fetch(self, command: str, script: bytes, out: Sink, *, what: str) -> None:
        """As Connection.fetch."""
        mark = self._ask("fetch", script)
        words = _Words(mark)
        reader = MarkReader(mark, out.write)
        control, data = self.machine.control, self.machine.data
        while reader.status is None:
            ready = self._wait(control, data)
            if control.fileno() in ready:
                words.feed(self._recv(control))
            if data.fileno() in ready:
                reader.feed(self._recv(data))
        self._finish(words, what)

    def put(self, source: Path, dest: str) -> None:
        """Send one file."""
        with source.open("rb") as file:
            self.stream(f"exec cat >{dest}", partial(shutil.copyfileobj, file), what=f"sending {dest}")

    def get(self, source: str, dest: Path) -> None:
        """Fetch one file."""
        with dest.open("wb") as out:
            self.fetch("", lines([f"exec cat {source}"]), out, what=f"fetching {source}")

    def freeze(self) -> str:
        """End what a step left behind, and freeze the disks. Return "" on success, else why a boot is needed.

        Once frozen, the guest waits for `thaw`, and may be saved.
        """
        head, verdict = self._line(self._ask("freeze"))
        if verdict == b"frozen":
            return ""
        if not verdict.startswith(b"boot "):
            raise self.machine.error(f"unexpected reply from the guest's shell: {(head + verdict)[-200:]!r}")
        return verdict.removeprefix(b"boot ").decode(errors="replace")

    def thaw(self, *, network: bool, seed: str) -> bool:
        """Let a frozen guest continue, with the host's time. Return False if it must boot to get this network.

        `seed` is a word that no other machine gets; it makes the guest's random numbers unlike any other
        machine's.
        """
        token = new_mark()
        line = f"{time.time():.3f} {seed or '-'} {'open' if network else 'closed'} {token}\n"
        self._send(self.machine.control, line.encode())
        return self._answer(f"{token} ".encode(), _ignore, THAW_TIMEOUT) == 0

    def _ask(self, kind: str, script: bytes = b"") -> bytes:
        """Send a request, and return the mark that ends its answer."""
        mark = new_mark()
        short = 0 < len(script) <= SHORT
        body = _escaped(script) if short else script
        self._send(self.machine.control, f"{kind} {'-' if short else len(script)} {mark}\n".encode() + body)
        return f"{mark} ".encode()

    def _answer(self, mark: bytes, output: Callable[[bytes], object], timeout: float | None = None) -> int:
        """Pass on the output before the mark, and return the status after it."""
        return self._end_of(MarkReader(mark, output), timeout)

    def _end_of(self, reader: MarkReader, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (status := reader.status) is None:
            if self.machine.control.fileno() in self._wait(self.machine.control):
                reader.feed(self._recv(self.machine.control))
            elif deadline is not None and time.monotonic() > deadline:
                raise self.machine.error(f"the guest did not answer within {timeout:g} s")
        return status

    def _finish(self, words: _Words, what: str) -> None:
        if self._end_of(words) != 0:
            raise MachineError(f"{what} failed in the guest: {words.tail.text}")

    def _line(self, mark: bytes) -> tuple[bytes, bytes]:
        """Return the end of the output before a mark, and the rest of the mark's line."""
        heard = b""
        deadline = time.monotonic() + self.machine.shape.boot_time
        while b"\n" not in (after := heard.partition(mark)[2]) and len(after) < KEPT:
            if self.machine.control.fileno() in self._wait(self.machine.control):
                heard += self._recv(self.machine.control)
                if mark not in heard:
                    heard = heard[-KEPT:]
            elif time.monotonic() > deadline:
                raise self.machine.error("the guest did not freeze its disks in time", hint="see --qemu-boot-time")
        before, _, after = heard.partition(mark)
        return before, after.partition(b"\n")[0].strip()

    def _wait(self, *ports: socket.socket) -> list[int]:
        return self.machine.pause(1.0, *(port.fileno() for port in ports))

    def _recv(self, port: socket.socket) -> bytes:
        try:
            if data := port.recv(_CHUNK):
                return data
        except BlockingIOError:
            return b""
        except OSError:
            pass
        raise self.machine.lost()

    def _send(self, port: socket.socket, data: bytes, words: _Words | None = None) -> None:
        """Send all of it. `words` gets what the guest says meanwhile: else each side would wait for the other."""
        left = memoryview(data)
        while left:
            try:
                left = left[port.send(left) :]
            except BlockingIOError:
                self.machine.check()
                heard, _, _ = select.select([self.machine.control] if words else [], [port], [], 1.0)
                if words and heard:
                    words.feed(self._recv(self.machine.control))
            except OSError:
                raise self.machine.lost() from None


class _Words(MarkReader):
    """Keeps the end of the output before the mark."""

    def __init__(self, mark: bytes) -> None:
        self.tail = Tail()
        super().__init__(mark, self.tail)


class _Pieces:
    """A file object that sends its bytes to the guest in pieces, each after a line with its size; 0 ends them."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send
        self._held = bytearray()

    def write(self, data: bytes) -> int:
        self._held += data
        if len(self._held) >= PIECE:
            self._flush()
        return len(data)

    def close(self) -> None:
        if self._held:
            self._flush()
        self._send(b"0\n")

    def _flush(self) -> None:
        self._send(b"%d\n" % len(self._held) + self._held)
        self._held.clear()


def _escaped(script: bytes) -> bytes:
    """Encode a script as one line for printf's %b."""
    return b"".join(b"\\0%03o" % byte if byte in _SPECIAL else bytes((byte,)) for byte in script) + b"\n"


#: Everything except printable ASCII without the backslash.
_SPECIAL = frozenset((*range(32), *range(127, 256), ord("\\")))


def _ignore(data: bytes) -> None:
    pass
