"""QEMU's control channel: JSON lines over a socket that QEMU inherits.

Protocol: https://www.qemu.org/docs/master/interop/qmp-spec.html
"""

from __future__ import annotations

import json
import select
import socket
import time
from typing import Any

from obuild.errors import MachineError


class QmpLost(MachineError):
    """QEMU closed the channel: it is gone, or going."""


class Qmp:
    """One client. Events that arrive are kept in `events`, oldest first, until someone takes them."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = b""
        self._last_id = 0
        self.events: list[dict[str, Any]] = []

    def fileno(self) -> int:
        """For waiting for events together with other things."""
        return self._sock.fileno()

    def negotiate(self, timeout: float) -> None:
        """Read the greeting and leave capabilities mode. QmpLost if QEMU ends first."""
        deadline = time.monotonic() + timeout
        self._read_until({}, deadline)
        self.execute("qmp_capabilities", timeout=timeout)

    def execute(self, command: str, arguments: dict[str, object] | None = None, *, timeout: float = 30.0) -> Any:
        """Run a command, return its answer. MachineError if QEMU refuses, or is silent for `timeout` seconds."""
        self._last_id += 1
        line = json.dumps({"execute": command, "arguments": arguments or {}, "id": self._last_id}) + "\n"
        try:
            self._sock.sendall(line.encode())
        except OSError as error:
            raise QmpLost(f"QEMU is gone: {error.strerror}") from error
        reply = self._read_until({"id": self._last_id}, time.monotonic() + timeout)
        if "error" in reply:
            raise MachineError(f"QEMU refused {command}: {reply['error'].get('desc', reply['error'])}")
        return reply["return"]

    def wait_event(self, *names: str, timeout: float) -> dict[str, Any] | None:
        """Return the next event with one of these names, or None after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while True:
            for index, event in enumerate(self.events):
                if event["event"] in names:
                    return self.events.pop(index)
            if (message := self._read(deadline)) is None:
                return None
            self._keep(message)

    def poll(self) -> None:
        """Read the events that have arrived, without waiting."""
        while (message := self._read(time.monotonic())) is not None:
            self._keep(message)

    def close(self) -> None:
        self._sock.close()

    def _read_until(self, wanted: dict[str, object], deadline: float) -> dict[str, Any]:
        """Return the next message with these members that is no event. Answers that come too late are skipped."""
        while (message := self._read(deadline)) is not None:
            if "event" not in message and all(message.get(name) == value for name, value in wanted.items()):
                return message
            self._keep(message)
        raise MachineError("QEMU does not answer on its control channel")

    def _keep(self, message: dict[str, Any]) -> None:
        if "event" in message:
            self.events.append(message)

    def _read(self, deadline: float) -> dict[str, Any] | None:
        """Return the next message, or None when the deadline has passed."""
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._sock], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return None
            try:
                data = self._sock.recv(65536)
            except OSError:
                data = b""
            if not data:
                raise QmpLost("QEMU is gone")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message
