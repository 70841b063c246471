"""One QEMU process, from its command line to its power-off.

QEMU never outlives us: the kernel kills it with the thread that started it, and leaving the `with` block
ends it. Soft first, then hard, and it is said which.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

from obuild.errors import MachineError
from obuild.executors.qemu.argv import CLOSED, OPEN, Links, Memory, qemu_argv
from obuild.executors.qemu.devices import REPORT, REPORT_SIZE
from obuild.executors.qemu.qmp import Qmp, QmpLost
from obuild.executors.qemu.shape import Shape
from obuild.host import process
from obuild.host.fs import in_memory
from obuild.host.process import CancelScope
from obuild.host.tail import KEPT

#: QEMU itself, without a guest, starts in well under a second; this is for a host that swaps.
START_TIMEOUT = 60.0

#: How many lines of the serial console an error shows.
CONSOLE_LINES = 20

#: How long a guest may take, in seconds, from ending the shell that stays in it to powering off: a shutdown ends
#: all processes first. Who waits so long has only an error to tell.
SHUTDOWN_GRACE = 15.0

#: How much of the console QEMU keeps, in bytes; must be a power of two.
CONSOLE_SIZE = 65536

_FORWARD = re.compile(r"\((\w+)\):\s[^(]*TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+22\b")
_ESTABLISHED = re.compile(r"TCP\[ESTABLISHED\]\s.*\s22\s+\d+\s+\d+\s*$", re.MULTILINE)


class Machine:
    """A running guest. Made by `start`; every method raises MachineError if QEMU is gone.

    `control` and `data` are our ends of the guest's two ports, if it has memory that can be saved; non-blocking.
    """

    def __init__(
        self,
        child: subprocess.Popen[bytes],
        qmp: Qmp,
        stderr: BinaryIO,
        shape: Shape,
        ports: tuple[socket.socket, socket.socket] | None = None,
    ) -> None:
        self.child = child
        self.qmp = qmp
        self.shape = shape
        self._stderr = stderr
        self._console = ""
        self._forwards = dict(_FORWARD.findall(self._usernet()))
        self._network = "net0"
        self.watched = False  # whether the guest keeps its ports open, and closing one means trouble
        if not self._forwards:
            raise MachineError("QEMU does not say which port it forwards to the guest")
        if ports:
            self.control, self.data = ports

    @property
    def port(self) -> int:
        """The port of 127.0.0.1 behind which the guest's SSH server is, in the network that it is in now."""
        return int(self._forwards[self._network])

    def switch(self, *, network: bool) -> None:
        """Open or close the network of a machine that has both kinds: only one of them is up."""
        self._network, other = (OPEN, CLOSED) if network else (CLOSED, OPEN)
        self.qmp.execute("set_link", {"name": other, "up": False})
        self.qmp.execute("set_link", {"name": self._network, "up": True})

    def linked(self, seconds: float) -> bool:
        """Wait until the guest's driver has brought its network card up, at most `seconds`; whether it has."""
        if self.watched:  # it has been running for long
            return True
        deadline = time.monotonic() + seconds
        while True:
            self.check()
            if any(event["event"] == "NIC_RX_FILTER_CHANGED" for event in self.qmp.events):
                return True
            if (left := deadline - time.monotonic()) <= 0:
                return False
            select.select([self.qmp], [], [], left)

    def connected(self) -> bool:
        """Whether the guest has accepted a TCP connection to its SSH port."""
        try:
            return bool(_ESTABLISHED.search(self._usernet()))
        except QmpLost:
            self.check()  # it knows why
            raise

    def check(self) -> None:
        """MachineError if the guest or QEMU has stopped by itself; OSError if the disk cannot be written."""
        lost = False
        try:
            self.qmp.poll()
        except QmpLost:  # its last events say more
            lost = True
        self._look()
        if lost:
            raise self._gone()
        if self.watched and self._port_closed():
            raise self._left()

    def lost(self) -> MachineError:
        """What to say when a port's other end is gone: QEMU is ending, and its control channel tells why.

        The channel may end a moment after the port. Raises what it says, as `check` does.
        """
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            self.check()
            select.select([self.qmp], [], [], 1.0)
        return MachineError("QEMU is gone")

    def _look(self) -> None:
        """Raise what an event says of the end of the guest, or of its disk."""
        for event in self.qmp.events:
            data = event.get("data", {})
            match event["event"]:
                case "SHUTDOWN":
                    raise self.error(f"the guest {what_it_did(str(data.get('reason')))} before the step was done")
                case "BLOCK_IO_ERROR":
                    raise OSError(errno.ENOSPC, f"the guest's disk cannot be written: {data.get('reason')}")

    def _port_closed(self) -> bool:
        return any(
            event["event"] == "VSERPORT_CHANGE" and not event.get("data", {}).get("open")
            for event in self.qmp.events
        )

    def _left(self) -> MachineError:
        """What to say when the shell in the guest has ended. A shutdown ends it, too, and tells a bit later."""
        deadline = time.monotonic() + SHUTDOWN_GRACE
        while (left := deadline - time.monotonic()) > 0:
            select.select([self.qmp], [], [], left)
            try:
                self.qmp.poll()
            except QmpLost:
                self._look()
                return self._gone()
            self._look()
        return self.error("the shell that runs obuild's steps in the guest has ended; did the step kill it?")

    def pause(self, seconds: float, *also: int) -> list[int]:
        """Wait until `seconds` are over or some of the file descriptors `also` can be read; returns those.

        MachineError as soon as the guest stops by itself.
        """
        self.check()
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            ready, _, _ = select.select([self.qmp.fileno(), *also], [], [], left)
            if self.qmp.fileno() in ready:
                self.check()
            if found := [fd for fd in also if fd in ready]:
                return found
        return []

    def power_off(self, *, ask: bool = True) -> None:
        """Press the power button and wait until the guest has shut itself down. MachineError if it does not.

        Without `ask` the guest has been told already, some other way.
        """
        try:
            if ask:
                self.qmp.execute("system_powerdown")
            event = self.qmp.wait_event("SHUTDOWN", "BLOCK_IO_ERROR", timeout=self.shape.boot_time)
        except QmpLost:
            # What the guest flushed, and it does when it unmounts, is in the image: qcow2's tables go with it.
            if not ask and self._switched_off():
                return
            raise self._gone() from None
        if event is None:
            raise self.error(
                f"the guest did not power off within {self.shape.boot_time:g} s of "
                + ("its power button being pressed" if ask else "being told to"),
                hint="does the image handle ACPI (acpid or systemd-logind)? --qemu-boot-time gives it longer",
            )
        if event["event"] == "BLOCK_IO_ERROR":
            raise OSError(errno.ENOSPC, f"the guest's disk cannot be written: {event['data'].get('reason')}")
        reason = event["data"].get("reason")
        if reason != "guest-shutdown":
            raise self.error(f"the guest {what_it_did(str(reason))} instead of powering off")
        self.quit()

    def ended(self, seconds: float) -> str | None:
        """Wait until the guest powers off, reboots or panics: why, in QMP's words. None if it has not.

        "reset" is a reboot after which the guest goes on; after all else it is held. OSError if its disk cannot be
        written.
        """
        try:
            event = self.qmp.wait_event("SHUTDOWN", "RESET", "BLOCK_IO_ERROR", timeout=seconds)
        except QmpLost:
            raise self._gone() from None
        if event is None:
            return None
        if event["event"] == "BLOCK_IO_ERROR":
            raise OSError(errno.ENOSPC, f"the guest's disk cannot be written: {event['data'].get('reason')}")
        return "reset" if event["event"] == "RESET" else str(event["data"].get("reason"))

    def take_picture(self, path: Path) -> None:
        """Write what the screen shows to a PNG file. MachineError if the machine has no screen."""
        self.qmp.execute("screendump", {"filename": str(path), "format": "png"})

    def vnc_port(self) -> int:
        """The port of 127.0.0.1 at which the screen can be watched."""
        return int(self.qmp.execute("query-vnc")["service"])

    def reported(self) -> str:
        """What the guest has sent through the port of `reporting`, as far as it is kept."""
        return str(self.qmp.execute("ringbuf-read", {"device": REPORT, "size": REPORT_SIZE}, timeout=5.0))

    def console(self) -> str:
        """The last lines of the guest's serial console."""
        with contextlib.suppress(MachineError):  # reading empties QEMU's buffer, so what was read is kept
            text = self.qmp.execute("ringbuf-read", {"device": "console", "size": CONSOLE_SIZE}, timeout=5.0)
            self._console = (self._console + str(text))[-CONSOLE_SIZE:]
        lines = [printable(line) for line in self._console.splitlines()]
        return "\n".join([line for line in lines if line.strip()][-CONSOLE_LINES:])

    def error(self, message: str, *, hint: str = "") -> MachineError:
        """A MachineError that shows the console's last lines."""
        console = self.console()
        shown = f"; its console ends with:\n{console}" if console else "; its serial console is empty"
        return MachineError(message + shown, hint=hint)

    def quit(self) -> None:
        """Let QEMU write out and close its images, and wait until it has."""
        try:
            self.qmp.execute("quit")
        except QmpLost:
            pass
        try:
            status = self.child.wait(timeout=START_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise MachineError("QEMU does not quit") from None
        if status != 0:
            raise MachineError(f"QEMU {process.ending(status)}: {_tail(self._stderr)}")

    def _gone(self) -> MachineError:
        """What to say of a QEMU that has ended; its console went with it."""
        if self._switched_off():
            return MachineError("the guest powered off before the step was done")
        if self.child.wait() == -signal.SIGBUS:
            raise OSError(errno.ENOSPC, "there is no room for the guest's memory")
        return MachineError(
            f"QEMU {process.ending(self.child.wait())} before the step was done: {_tail(self._stderr)}"
        )

    def _switched_off(self) -> bool:
        """Whether the guest has ended QEMU, which has closed its channel already.

        In QEMU 7.2 riscv64's power switch does, on the spot, with 0 and no event; a crash or a reset does not.
        """
        return self.child.wait() == 0

    def _usernet(self) -> str:
        return str(self.qmp.execute("human-monitor-command", {"command-line": "info usernet"}))


@contextmanager
def start(
    shape: Shape,
    image: Path,
    scope: CancelScope,
    *,
    network: bool,
    memory: Memory | None = None,
    extra: Sequence[str | Path] = (),
) -> Iterator[Machine]:
    """A machine that boots `image`; killed on the way out unless it has powered off, or when `scope` is cancelled.

    With `memory` it is held at first, and its ports are there. `extra` are more arguments for QEMU.
    MachineError, with QEMU's own words, if it does not start.
    """
    with ExitStack() as stack:
        stderr = stack.enter_context(in_memory("qemu-stderr"))
        pairs = [socket.socketpair() for _ in range(3 if memory else 1)]
        ours, *ports = [stack.enter_context(our) for our, _ in pairs]
        with ExitStack() as others:
            qmp, *links = [f"socket,fd={others.enter_context(their).fileno()}" for _, their in pairs]
            argv = partial(qemu_argv, shape, image, network=network, memory=memory, extra=extra)
            spawned = scope.spawned(
                argv(qmp=qmp, links=Links(*links) if links else None),
                shown=argv(qmp="stdio"),  # a pasted line has no such sockets
                stderr=stderr,
                pass_fds=[their.fileno() for _, their in pairs],
            )
            child = stack.enter_context(spawned)
        for port in ports:
            port.setblocking(False)
        pair = (ports[0], ports[1]) if ports else None
        machine = _greet(child, Qmp(ours), stderr, shape, pair)
        if memory:
            machine.switch(network=network)
        yield machine


def _greet(
    child: subprocess.Popen[bytes],
    qmp: Qmp,
    stderr: BinaryIO,
    shape: Shape,
    ports: tuple[socket.socket, socket.socket] | None,
) -> Machine:
    try:
        qmp.negotiate(START_TIMEOUT)
        return Machine(child, qmp, stderr, shape, ports)
    except QmpLost:
        status = child.wait()
        raise MachineError(
            f"QEMU did not start, it {process.ending(status)}: {_tail(stderr)}",
            hint="see --qemu-memory, --qemu-cpus and --qemu-accel",
        ) from None


def what_it_did(reason: str) -> str:
    """The reason of an event SHUTDOWN, in words."""
    reasons = {
        "guest-shutdown": "powered off",
        "guest-reset": "rebooted",
        "guest-panic": "panicked",
    }
    return reasons.get(reason, f"stopped ({reason})")


def _tail(file: BinaryIO) -> str:
    size = os.fstat(file.fileno()).st_size
    tail = os.pread(file.fileno(), KEPT, max(0, size - KEPT))  # QEMU's end may move
    text = tail.decode(errors="replace").strip()
    return text or "it said nothing"


def printable(line: str) -> str:
    """Without the escape sequences of a guest that wants to draw on our terminal."""
    line = re.sub(r"\x1b(\[[0-?]*[ -/]*[@-~]|[@-_])", "", line)
    return "".join(character for character in line if character.isprintable() or character == "\t")
