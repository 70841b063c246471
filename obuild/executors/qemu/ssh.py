"""One SSH connection into a guest: wait for it, run scripts, send and fetch files.

Only this module imports paramiko and scp, and only once a machine is booting. Host keys are not checked: the port
is on 127.0.0.1 and belongs to our own QEMU, and the guest is not trusted anyway.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from obuild.errors import MachineError, UsageError
from obuild.executors.qemu.machine import SHUTDOWN_GRACE, Machine
from obuild.host.marks import MarkReader, new_mark
from obuild.host.regular import NotAFile, open_file
from obuild.host.tail import Tail
from obuild.host.terminal import Terminal
from obuild.plan.archive import Sink

if TYPE_CHECKING:
    import paramiko

#: How long a connection may stay unaccepted, once the guest's network card is up, before we try another; in
#: seconds.
ACCEPT_TIMEOUT = 1.0

#: How long to wait for the network card to come up before trying anyway, in seconds: not every driver reports it.
LINK_TIMEOUT = 5.0
RETRY_PAUSE = 0.05

#: For the key exchange and for opening a channel, in seconds; both are slow in an emulated guest with many CPUs.
REPLY_TIMEOUT = 120.0

#: Key exchange methods, cheapest for an emulated guest first.
KEX = ("curve25519-sha256", "curve25519-sha256@libssh.org", "ecdh-sha2-nistp256")

_CHUNK = 1 << 16

Output = Callable[[bytes], object]


class Connection:
    """An open connection, logged in. Every method raises MachineError if the guest stops or hangs up."""

    def __init__(self, machine: Machine, transport: paramiko.Transport) -> None:
        self.machine = machine
        self._transport = transport

    def run(self, command: str, script: Callable[[str], bytes], output: Output) -> int:
        """Run a script that ends by printing a mark and its exit status. Return that status.

        `command` reads the script from its stdin. All output before the mark goes to `output` as it arrives. Later
        output of background processes is not waited for.
        """
        mark = new_mark()
        with self._channel(command) as channel:
            channel.sendall(script(mark))
            channel.shutdown_write()
            reader = MarkReader(f"{mark} ".encode(), output)
            while (status := reader.status) is None:
                data = self._recv(channel)
                if not data:
                    reader.flush()
                    raise self._lost()
                reader.feed(data)
            return status

    def check(self, command: str, script: bytes, *, what: str) -> None:
        """Run one of our own scripts. MachineError, with its output, unless it exits with 0."""
        with self._channel(command) as channel:
            channel.sendall(script)
            channel.shutdown_write()
            self._finish(channel, what)

    def stream(self, command: str, send: Callable[[Any], None], *, what: str) -> None:
        """Run a command and let `send` write to its stdin. MachineError unless it exits with 0."""
        with self._channel(command) as channel:
            try:
                send(_Sink(self.machine, channel))
            except _Closed as error:  # the command ended before it had read everything; its output says why
                self.machine.pause(RETRY_PAUSE)
                self._finish(channel, what)
                raise MachineError(f"{what}: the connection to the guest broke") from error
            channel.shutdown_write()
            self._finish(channel, what)

    def power_off(self, command: str, script: bytes) -> None:
        """Run a script that powers the guest off, and wait until it has. MachineError if it does not."""
        with self._channel(command) as channel:
            channel.sendall(script)
            channel.shutdown_write()
            self.machine.power_off(ask=False)

    def fetch(self, command: str, script: bytes, out: Sink, *, what: str) -> None:
        """Run one of our own scripts and write its stdout to `out`. MachineError unless it exits with 0."""
        with self._channel(command, combined=False) as channel:
            channel.sendall(script)
            channel.shutdown_write()
            said = Tail()
            while data := self._recv(channel, said):
                out.write(data)
            _take_stderr(channel, said)  # what arrived just before the end
            self._ended(channel, said, what)

    def interact(self, command: str, terminal: Terminal) -> int:
        """Run a command with our terminal as its stdin and stdout. Return its exit status.

        It gets a terminal of its own if ours is one. Return 255 if a signal ended it.
        """
        with self._channel(command, combined=False, terminal=terminal) as channel:
            terminal.join(_Line(channel), self.machine.pause)
            status = channel.recv_exit_status()
            if status == -1 and not self._transport.is_active():
                raise self._lost()
            return status if status in range(256) else 255

    def put(self, source: Path, dest: str) -> None:
        """Send one file by scp."""
        with self._scp() as client:
            client.put(str(source), dest)

    def get(self, source: str, dest: Path) -> None:
        """Fetch one file by scp. It is written only to `dest`, whatever the guest answers."""
        with self._scp() as client:
            client.get(source, str(dest))
        if not dest.exists():
            raise MachineError("scp with the guest failed: it sent no file")

    def _finish(self, channel: paramiko.Channel, what: str) -> None:
        said = Tail()
        while data := self._recv(channel):
            said(data)
        self._ended(channel, said, what)

    def _ended(self, channel: paramiko.Channel, said: Tail, what: str) -> None:
        status = channel.recv_exit_status()
        if status == -1 and not self._transport.is_active():
            raise self._lost()
        if status != 0:
            raise MachineError(f"{what} failed in the guest: {said.text}")

    @contextmanager
    def _channel(
        self, command: str, *, combined: bool = True, terminal: Terminal | None = None
    ) -> Iterator[paramiko.Channel]:
        import paramiko

        try:
            channel = self._transport.open_session(timeout=REPLY_TIMEOUT)
            channel.set_combine_stderr(combined)
            if terminal and terminal.typed:
                self._give_terminal(channel, terminal)
            channel.exec_command(command)
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise self._lost() from error
        try:
            yield channel
        finally:
            with contextlib.suppress(EOFError, OSError):  # the connection is gone, which was reported elsewhere
                channel.close()

    def _give_terminal(self, channel: paramiko.Channel, terminal: Terminal) -> None:
        import paramiko

        columns, lines = terminal.size()
        try:
            channel.get_pty(terminal.name, columns, lines)
        except paramiko.SSHException as error:
            if not self._transport.is_active():
                raise
            hint = "you can run a shell without one: echo COMMAND | obuild shell …"
            raise MachineError("the guest's SSH server gives us no terminal", hint=hint) from error

    def _recv(self, channel: paramiko.Channel, errors: Tail | None = None) -> bytes:
        """Return the next output of a channel, b"" at its end; watch the machine meanwhile.

        If stderr is not part of the output, `errors` gets it.
        """
        while not channel.recv_ready() and not channel.closed and not channel.eof_received:
            if errors is not None and channel.recv_stderr_ready():
                _take_stderr(channel, errors)
            else:
                self.machine.pause(1.0, channel.fileno())
        return bytes(channel.recv(_CHUNK))

    @contextmanager
    def _scp(self) -> Iterator[Any]:
        import paramiko
        import scp

        class OneFile(scp.SCPClient):  # type: ignore[misc]  # scp is not typed
            """Accepts only what we asked for: one file, with our name and mode, whatever the guest sends."""

            def _recv_file(self, cmd: bytes) -> None:
                if not self._rename:
                    raise scp.SCPException("the guest sent more than the file that was asked for")
                super()._recv_file(b"0644 " + cmd.partition(b" ")[2])

            def _recv_pushd(self, cmd: bytes) -> None:
                # the library would follow a hostile guest into `..`
                raise scp.SCPException("the guest sent a folder where a file was asked for")

            def _set_time(self, cmd: bytes) -> None:
                raise scp.SCPException("the guest sent a time that was not asked for")

            _recv_popd = _recv_pushd
            channel: paramiko.Channel | None

            def __exit__(self, kind: object, error: object, trace: object) -> None:
                # the library would wait for the guest's scp to end, which waits for us to read more
                if error is not None and self.channel is not None:
                    self.channel.close()
                    self.channel = None
                super().__exit__(kind, error, trace)

        try:
            with OneFile(self._transport, socket_timeout=REPLY_TIMEOUT) as client:
                yield client
        except (OSError, ValueError, AssertionError, EOFError, scp.SCPException, paramiko.SSHException) as error:
            if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
                raise  # the host's disk, not the guest
            self.machine.check()
            # the library asserts that what the guest sends are lines
            why = error if str(error) else "the guest does not speak its protocol"
            raise MachineError(f"scp with the guest failed: {why}") from error

    def _lost(self) -> MachineError:
        """Return why the connection is gone: the machine's own reason, if one arrives in time."""
        try:
            self.machine.pause(SHUTDOWN_GRACE)
        except MachineError as error:
            return error
        return self.machine.error("the guest closed the SSH connection in the middle of the step")


def _take_stderr(channel: paramiko.Channel, errors: Tail) -> None:
    """Add what has arrived on a channel's stderr to `errors`."""
    while channel.recv_stderr_ready():
        errors(channel.recv_stderr(_CHUNK))


class _Line:
    """Adapts a channel to what a terminal is connected to."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel

    def fileno(self) -> int | None:
        channel = self._channel
        more = not channel.eof_received or channel.recv_ready() or channel.recv_stderr_ready()
        return int(channel.fileno()) if more else None

    def ended(self, *, idle: bool) -> bool:
        channel = self._channel
        return bool(channel.closed or ((idle or channel.eof_received) and channel.exit_status_ready()))

    def receive(self) -> tuple[bytes, bytes]:
        channel = self._channel
        output = channel.recv(_CHUNK) if channel.recv_ready() else b""
        errors = channel.recv_stderr(_CHUNK) if channel.recv_stderr_ready() else b""
        return bytes(output), bytes(errors)

    def send(self, data: bytes) -> int:
        if not self._channel.send_ready():
            return 0
        try:
            return int(self._channel.send(data[:_CHUNK]))
        except OSError:  # the other end no longer reads
            return len(data)

    def end_input(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            self._channel.shutdown_write()

    def resize(self, columns: int, lines: int) -> None:
        import paramiko

        with contextlib.suppress(paramiko.SSHException, OSError, EOFError):
            self._channel.resize_pty(columns, lines)


class _Closed(Exception):
    """The other end no longer reads."""


class _Sink:
    """A file object for a channel's stdin, which notices a guest that stops reading."""

    def __init__(self, machine: Machine, channel: paramiko.Channel) -> None:
        self._machine = machine
        self._channel = channel
        channel.settimeout(1.0)

    def write(self, data: bytes) -> int:
        left = memoryview(data)
        while left:
            try:
                left = left[self._channel.send(bytes(left[:_CHUNK])) :]
            except TimeoutError:  # nothing of it was sent
                self._machine.check()
            except OSError as error:
                raise _Closed from error
        return len(data)


@contextmanager
def connect(machine: Machine, *, login: str, key: Path) -> Iterator[Connection]:
    """Log in as soon as the guest allows it.

    MachineError if it does not answer within the machine's boot time, or does not accept the key.
    """
    deadline = time.monotonic() + machine.shape.boot_time
    private = load_key(key)  # before the wait: loading paramiko takes a while, and the guest boots meanwhile
    with contextlib.closing(wait_for_banner(machine, deadline)) as sock:
        transport = _log_in(machine, sock, login, private, key, deadline)
        try:
            yield Connection(machine, transport)
        finally:
            transport.close()


def wait_for_banner(machine: Machine, deadline: float) -> socket.socket:
    """Return a connection on which the guest's SSH server has begun to speak.

    QEMU's user network accepts connections before the guest does, and delivers all of them, however old, once
    it can; each would cost the guest a fork of its sshd. So we wait for the network card to be up, and open
    a second connection only if the first is not being served.
    """
    with contextlib.ExitStack() as stack:
        socks: dict[int, socket.socket] = {}
        up = False
        while time.monotonic() < deadline:
            if not socks or not machine.connected():
                up = up or machine.linked(min(LINK_TIMEOUT, deadline - time.monotonic()))
                if sock := _open(machine):
                    socks[stack.enter_context(sock).fileno()] = sock
            for fd in machine.pause(ACCEPT_TIMEOUT, *socks):
                sock = socks.pop(fd)
                if _speaks(sock):
                    return sock.dup()  # the others are closed, and so is this one's first descriptor
                sock.close()  # or a guest that refuses us for minutes takes all our descriptors
                up = True  # the guest refused us, so its network is up
                machine.pause(RETRY_PAUSE)
        raise machine.error(
            f"the guest did not answer SSH within {machine.shape.boot_time:g} s and was killed",
            hint="--qemu-boot-time SECONDS waits longer",
        )


def _open(machine: Machine) -> socket.socket | None:
    machine.check()
    try:
        return socket.create_connection(("127.0.0.1", machine.port), timeout=REPLY_TIMEOUT)
    except OSError:  # only QEMU itself can refuse; the pause notices if it is gone
        machine.pause(RETRY_PAUSE)
        return None


def _speaks(sock: socket.socket) -> bool:
    try:
        return sock.recv(4, socket.MSG_PEEK) == b"SSH-"
    except ConnectionError:
        return False


def _log_in(
    machine: Machine, sock: socket.socket, login: str, private: paramiko.PKey, key: Path, deadline: float
) -> paramiko.Transport:
    import paramiko

    logging.getLogger("paramiko").setLevel(logging.CRITICAL)
    transport = paramiko.Transport(sock)
    options = transport.get_security_options()
    options.kex = tuple(name for name in KEX if name in options.kex)
    transport.banner_timeout = transport.auth_timeout = REPLY_TIMEOUT
    try:
        transport.start_client(timeout=max(REPLY_TIMEOUT, deadline - time.monotonic()))
        transport.auth_publickey(login, private)
    except paramiko.AuthenticationException:
        transport.close()
        raise MachineError(
            f"the guest does not accept the key {key} for {login!r}",
            hint="its image was made for another key: make it again, or `obuild base add … --login --key`",
        ) from None
    except (paramiko.SSHException, EOFError, OSError) as error:
        transport.close()
        machine.pause(RETRY_PAUSE)
        raise machine.error(f"the guest's SSH server answered, but the login failed: {error}") from error
    return transport


def load_key(path: Path) -> paramiko.PKey:
    """Return the private key in a file. UsageError if it is not a key, or needs a passphrase."""
    import paramiko

    try:
        with open_file(path, follow=True):  # paramiko would block on a pipe
            return paramiko.PKey.from_path(path)
    except NotAFile as error:
        raise UsageError(f"cannot use the SSH key {path}: {error.strerror}") from error
    except Exception as error:  # paramiko passes on whatever its parsers raise on a file that is not a key
        why = (isinstance(error, OSError) and error.strerror) or error
        raise UsageError(
            f"cannot use the SSH key {path}: {why}", hint="an unencrypted OpenSSH private key"
        ) from error


def make_key(path: Path) -> str:
    """Return the public key of `path`. If there is no such key pair, make it, readable only by its owner."""
    import os
    import tempfile

    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        text = Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
        with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", dir=path.parent) as file:  # made with mode 0600
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):  # another process was faster: its key counts
                os.link(file.name, path)
    key = load_key(path)
    return f"{key.get_name()} {key.get_base64()} obuild"
