"""One QEMU process, from its command line to its power-off.

QEMU never outlives us: the kernel kills it with the thread that started it, and leaving the `with` block
ends it: gently first, then by force, with an error that says which.
"""

from __future__ import annotations

import contextlib
import errno
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
from typing import Any, BinaryIO

from obuild.errors import MachineError
from obuild.executors.qemu import tpm as swtpm
from obuild.executors.qemu.argv import CLOSED, OPEN, Links, Memory, qemu_argv
from obuild.executors.qemu.devices import REPORT, REPORT_SIZE
from obuild.executors.qemu.shape import Shape
from obuild.executors.qmp import Qmp, QmpLost
from obuild.host import process
from obuild.host.fs import in_memory
from obuild.host.process import CancelScope
from obuild.host.tail import end_of

#: In seconds. QEMU itself, without a guest, starts in well under a second; this is for a host that swaps.
START_TIMEOUT = 60.0

#: How many lines of the serial console an error shows.
CONSOLE_LINES = 20

#: How long a guest may take, in seconds, from the end of its resident shell to power-off: a shutdown ends all
#: processes first. Only an error waits this long.
SHUTDOWN_GRACE = 15.0

#: How much of the console QEMU keeps, in bytes; must be a power of two.
CONSOLE_SIZE = 65536

_FORWARD = re.compile(r"\((\w+)\):\s[^(]*TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+22\b")
_ESTABLISHED = re.compile(r"TCP\[ESTABLISHED\]\s.*\s22\s+\d+\s+\d+\s*$", re.MULTILINE)


class Machine:
    """A running guest, made by `start`. Every method raises MachineError if QEMU is gone.

    If its memory can be saved, `control` and `data` are our ends of the guest's two ports; they are non-blocking.
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
        self.watched = False  # whether the guest keeps its ports open, so that a closed one means trouble
        if not self._forwards:
            raise MachineError("QEMU does not report which port it forwards to the guest")
        if ports:
            self.control, self.data = ports

    @property
    def port(self) -> int:
        """The port of 127.0.0.1 that leads to the guest's SSH server, in its current network."""
        return int(self._forwards[self._network])

    def switch(self, *, network: bool) -> None:
        """Open or close the network of a machine that has both kinds: only one of them is up."""
        self._network, other = (OPEN, CLOSED) if network else (CLOSED, OPEN)
        self.qmp.execute("set_link", {"name": other, "up": False})
        self.qmp.execute("set_link", {"name": self._network, "up": True})

    def linked(self, seconds: float) -> bool:
        """Wait up to `seconds` for the guest's driver to bring its network card up. Return whether it has."""
        if self.watched:  # it came up long ago
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
        """Return whether the guest has accepted a TCP connection to its SSH port."""
        try:
            return bool(_ESTABLISHED.search(self._usernet()))
        except QmpLost:
            self.check()  # raises the reason
            raise

    def check(self) -> None:
        """MachineError if the guest or QEMU has stopped by itself; OSError if the disk cannot be written."""
        lost = False
        try:
            self.qmp.poll()
        except QmpLost:  # its last events say why
            lost = True
        self._look()
        if lost:
            raise self._gone()
        if self.watched and self._port_closed():
            raise self._left()

    def lost(self) -> MachineError:
        """Return the error for a port whose other end is gone: QEMU is ending, and its control channel says why.

        The channel may end a moment later than the port. Raises the reason, as `check` does, once it is known.
        """
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            self.check()
            select.select([self.qmp], [], [], 1.0)
        return MachineError("QEMU is gone")

    def _look(self) -> None:
        """Raise an error if an event says that the guest has ended, or that its disk failed."""
        for event in self.qmp.events:
            data = event.get("data", {})
            match event["event"]:
                case "SHUTDOWN" | "GUEST_PANICKED":
                    raise self.error(f"the guest {what_it_did(_reason(event))} before the step was done")
                case "BLOCK_IO_ERROR":
                    raise OSError(errno.ENOSPC, f"the guest's disk cannot be written: {data.get('reason')}")

    def _port_closed(self) -> bool:
        return any(
            event["event"] == "VSERPORT_CHANGE" and not event.get("data", {}).get("open")
            for event in self.qmp.events
        )

    def _left(self) -> MachineError:
        """Return the error for a resident shell that has ended. A shutdown also ends it, but is reported later."""
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
        """Wait until `seconds` are over or some of the file descriptors `also` are readable; return those.

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
        """Press the power button and wait until the guest has shut down. MachineError if it does not.

        A guest may answer SSH before it listens to the button, so it is pressed again. With `ask=False`, the guest
        has already been told to power off in some other way.
        """
        try:
            event = self._pressed() if ask else self._end(self.shape.boot_time)
        except QmpLost:
            # Unmounting flushes, and what the guest has flushed is in the image, with qcow2's tables.
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
        if (reason := _reason(event)) != "guest-shutdown":
            raise self.error(f"the guest {what_it_did(reason)} instead of powering off")
        self.quit()

    def _pressed(self) -> dict[str, Any] | None:
        """Press the power button until the guest ends; None if it does not."""
        deadline = time.monotonic() + self.shape.boot_time
        while True:
            self.qmp.execute("system_powerdown")
            left = max(0.0, deadline - time.monotonic())
            event = self._end(min(left, _PRESS_AGAIN))
            if event is not None or left <= _PRESS_AGAIN:
                return event

    def _end(self, seconds: float) -> dict[str, Any] | None:
        """What ends a guest that is told to power off, or None after `seconds`."""
        return self.qmp.wait_event(*_ENDS, "BLOCK_IO_ERROR", timeout=seconds)

    def ended(self, seconds: float) -> str | None:
        """Wait until the guest powers off, reboots or panics. Return QMP's reason, or None after `seconds`.

        "reset" is a reboot after which the guest continues; after anything else it is paused. OSError if its disk
        cannot be written.
        """
        try:
            event = self.qmp.wait_event(*_ENDS, "RESET", "BLOCK_IO_ERROR", timeout=seconds)
        except QmpLost:
            raise self._gone() from None
        if event is None:
            return None
        if event["event"] == "BLOCK_IO_ERROR":
            raise OSError(errno.ENOSPC, f"the guest's disk cannot be written: {event['data'].get('reason')}")
        return "reset" if event["event"] == "RESET" else _reason(event)

    def press(self, key: str) -> None:
        """Press a key of the keyboard, by QEMU's name for it, unless the guest has stopped."""
        with contextlib.suppress(MachineError):
            self.qmp.execute("send-key", {"keys": [{"type": "qcode", "data": key}]})

    def take_picture(self, path: Path) -> None:
        """Write the screen's content to a PNG file. MachineError if the machine has no screen."""
        self.qmp.execute("screendump", {"filename": str(path), "format": "png"})

    def vnc_port(self) -> int:
        """Return the port of 127.0.0.1 for watching the screen by VNC."""
        return int(self.qmp.execute("query-vnc")["service"])

    def reported(self) -> str:
        """Return what the guest has sent through the port of `reporting`, as far as it was kept."""
        return str(self.qmp.execute("ringbuf-read", {"device": REPORT, "size": REPORT_SIZE}, timeout=5.0))

    def console(self, lines: int = CONSOLE_LINES) -> str:
        """Return the last `lines` of the guest's serial console, or as many as are kept."""
        with contextlib.suppress(MachineError):  # reading empties QEMU's buffer, so keep what was read
            text = self.qmp.execute("ringbuf-read", {"device": "console", "size": CONSOLE_SIZE}, timeout=5.0)
            self._console = (self._console + str(text))[-CONSOLE_SIZE:]
        kept = [printable(line) for line in self._console.splitlines()]
        return "\n".join([line for line in kept if line.strip()][-lines:])

    def error(self, message: str, *, hint: str = "") -> MachineError:
        """Return a MachineError that shows the last lines of the console."""
        console = self.console()
        shown = f"; its console ends with:\n{console}" if console else "; its serial console is empty"
        return MachineError(message + shown, hint=hint)

    def quit(self) -> None:
        """Have QEMU write out and close its images, and wait until it has ended."""
        try:
            self.qmp.execute("quit")
        except QmpLost:
            pass
        try:
            status = self.child.wait(timeout=START_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise MachineError("QEMU does not quit") from None
        if status != 0:
            raise MachineError(f"QEMU {process.ending(status)}: {_said(self._stderr)}")

    def _gone(self) -> MachineError:
        """Return the error for a QEMU that has ended; its console is lost."""
        if self._switched_off():
            return MachineError("the guest powered off before the step was done")
        if self.child.wait() == -signal.SIGBUS:
            raise OSError(errno.ENOSPC, "there is no room for the guest's memory")
        return MachineError(
            f"QEMU {process.ending(self.child.wait())} before the step was done: {_said(self._stderr)}"
        )

    def _switched_off(self) -> bool:
        """Return whether the guest has ended QEMU, whose control channel is already closed.

        In QEMU 7.2, riscv64's power switch ends QEMU at once, with status 0 and no event; a crash or reset does
        not.
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
    """Start a machine that boots `image`. It is killed on leaving unless powered off, or if `scope` is cancelled.

    With `memory`, it starts paused and has its ports. `extra` are more arguments for QEMU.
    MachineError, with QEMU's message, if it does not start.
    """
    with ExitStack() as stack:
        stderr = stack.enter_context(in_memory("qemu-stderr"))
        pairs = [socket.socketpair() for _ in range(3 if memory else 1)]
        ours, *ports = [stack.enter_context(our) for our, _ in pairs]
        tpm = stack.enter_context(swtpm.started(shape.tpm, scope, stderr)) if shape.tpm else None
        with ExitStack() as others:
            theirs = [others.enter_context(their) for _, their in pairs]
            qmp, *links = [f"socket,fd={their.fileno()}" for their in theirs]
            if tpm:
                theirs.append(others.enter_context(tpm))
            argv = partial(qemu_argv, shape, image, network=network, memory=memory, extra=extra)
            spawned = scope.spawned(
                argv(
                    qmp=qmp,
                    links=Links(*links) if links else None,
                    tpm=f"socket,fd={tpm.fileno()}" if tpm else "",
                ),
                shown=argv(qmp="stdio"),  # without the sockets, which a pasted command would lack
                stderr=stderr,
                pass_fds=[their.fileno() for their in theirs],
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
            f"QEMU did not start, it {process.ending(status)}: {_said(stderr)}",
            hint="see --qemu-memory, --qemu-cpus and --qemu-accel",
        ) from None


#: The events of a guest that has ended. With our `-action shutdown=pause`, QEMU sends no SHUTDOWN for a panic.
_ENDS = ("SHUTDOWN", "GUEST_PANICKED")

#: How long a guest has after its power button before that is pressed again, in seconds.
_PRESS_AGAIN = 20.0


def _reason(event: dict[str, Any]) -> str:
    """Return why a guest has ended, as SHUTDOWN gives it, from one of these events."""
    return "guest-panic" if event["event"] == "GUEST_PANICKED" else str(event["data"].get("reason"))


def what_it_did(reason: str) -> str:
    """The reason of an event SHUTDOWN, in words."""
    reasons = {
        "guest-shutdown": "powered off",
        "guest-reset": "rebooted",
        "guest-panic": "panicked",
    }
    return reasons.get(reason, f"stopped ({reason})")


def _said(stderr: BinaryIO) -> str:
    return end_of(stderr) or "it printed nothing"


def printable(line: str) -> str:
    """Remove escape sequences, so that a guest cannot draw on our terminal."""
    line = re.sub(r"\x1b(\[[0-?]*[ -/]*[@-~]|[@-_])", "", line)
    return "".join(character for character in line if character.isprintable() or character == "\t")
