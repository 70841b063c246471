"""Our end of the resident shell, with a guest that is scripted line by line."""

from __future__ import annotations

import io
import re
import select
import socket
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import pytest

from obuild.errors import MachineError
from obuild.executors.qemu import agent
from obuild.executors.qemu.agent import PIECE, Resident
from obuild.executors.qemu.machine import Machine
from obuild.executors.qemu.shape import Shape
from tests.support.fakes import FakeMachine

MIB = 1 << 20


class Ported(FakeMachine):
    """A machine with two ports."""

    def __init__(self, control: socket.socket, data: socket.socket) -> None:
        super().__init__(0, Shape())
        self.control, self.data = control, data
        self.watched = False

    def pause(self, seconds: float, *also: int) -> list[int]:
        return super().pause(min(seconds, 0.05) if agent.THAW_TIMEOUT == 0 else seconds, *also)


class Guest:
    """The other ends of the ports."""

    def __init__(self, machine: Ported, control: socket.socket, data: socket.socket) -> None:
        self.machine = machine
        self._control, self._data = control, data
        self._requests = control.makefile("rb")
        self._pieces = data.makefile("rb")
        self.mark = b""
        self.kind = ""

    def hear(self) -> bytes:
        """Read a request; return its script."""
        kind, size, self.mark = self._requests.readline().split()
        self.kind = kind.decode()
        if size != b"-":
            return self._requests.read(int(size))
        line = self._requests.readline()  # decoded as a shell's printf would
        assert line.endswith(b"\n")
        return re.sub(rb"\\0([0-7]{3})", lambda escape: bytes([int(escape[1], 8)]), line[:-1])

    def line(self) -> list[str]:
        return self._requests.readline().decode().split()

    def piece(self) -> bytes:
        """Read a piece of a stream; b"" is its end."""
        return self._pieces.read(int(self._pieces.readline()))

    def say(self, data: bytes) -> None:
        self._control.sendall(data)

    def send(self, data: bytes) -> None:
        self._data.sendall(data)

    def answer(self, output: bytes = b"", status: int = 0) -> None:
        self.say(output + b"%s %d\n" % (self.mark, status))

    def go(self) -> None:
        """End the machine: nothing more arrives."""
        for end in (self._control, self._data):
            end.shutdown(socket.SHUT_RDWR)


Play = Callable[[Guest], object]
Talk = Callable[[Play], Resident]


@pytest.fixture
def talk() -> Iterator[Talk]:
    """Start talking to a guest that runs `play`, which must have ended when the test ends."""
    failed: list[BaseException] = []

    with ExitStack() as stack:

        def begin(play: Play) -> Resident:
            pairs = [socket.socketpair() for _ in range(2)]
            for end in (end for pair in pairs for end in pair):
                stack.enter_context(end)
            (control, theirs), (data, their_data) = pairs
            control.setblocking(False)
            data.setblocking(False)
            machine = Ported(control, data)
            guest = Guest(machine, theirs, their_data)

            def run() -> None:
                try:
                    play(guest)
                except BaseException as error:
                    failed.append(error)
                    guest.go()

            thread = threading.Thread(target=run, daemon=True)
            thread.start()
            stack.callback(thread.join, 30)
            for end in (control, data):  # so that a guest that is still waiting sees the end
                stack.callback(end.shutdown, socket.SHUT_WR)
            return Resident(cast(Machine, machine))

        yield begin
    assert failed == []


def echoed(mark: str) -> bytes:
    """A script that consists only of its mark."""
    return mark.encode()


# -- steps


def run(shell: Resident) -> tuple[bytes, int]:
    """Run a step; return its output and status."""
    output = bytearray()
    status = shell.run("sh", echoed, output.extend)
    return bytes(output), status


def test_the_ports_are_watched_once_the_shell_is_used(talk: Talk) -> None:
    assert cast(Ported, talk(lambda guest: None).machine).watched


def test_a_step_returns_its_output_and_status(talk: Talk) -> None:
    def play(guest: Guest) -> None:
        mark = guest.hear()
        assert guest.kind == "step"
        assert mark != guest.mark
        guest.answer(b"hello\nworld" + mark + b" 7\n")

    assert run(talk(play)) == (b"hello\nworld", 7)


def test_output_arrives_while_the_step_runs(talk: Talk) -> None:
    """What may be the beginning of a mark is held back until it turns out not to be one."""
    heard = bytearray()
    both = threading.Event()

    def play(guest: Guest) -> None:
        mark = guest.hear()
        guest.say(b"first " + mark[:20])
        assert both.wait(30)
        guest.say(b"? " + guest.mark[:20])
        guest.say(b"! " + mark[:9])
        guest.say(mark[9:] + b" 0")
        guest.say(b"\n" + guest.mark[:9])
        guest.say(guest.mark[9:] + b" 0\n")

    def output(data: bytes) -> None:
        heard.extend(data)
        both.set()

    shell = talk(play)
    assert shell.run("sh", echoed, output) == 0
    assert heard.startswith(b"first obuild-")
    assert heard.count(b"obuild-") == 2
    assert heard.endswith(b"! ")


def test_every_byte_of_the_output_arrives_once_however_it_is_split(talk: Talk) -> None:
    def play(guest: Guest) -> None:
        mark = guest.hear()
        for byte in b"obuild-\0\xff" + mark + b" 3\n" + guest.mark + b" 0\n":
            guest.say(bytes([byte]))

    assert run(talk(play)) == (b"obuild-\0\xff", 3)


def test_text_after_the_end_of_a_command_is_not_its_output(talk: Talk) -> None:
    """Such as output of a background process that it left."""
    output = bytearray()
    heard = threading.Event()

    def play(guest: Guest) -> None:
        mark = guest.hear()
        guest.say(b"output " + mark + b" 4\n")
        assert heard.wait(30)
        guest.answer(b"noise")

    def hear(data: bytes) -> None:
        output.extend(data)
        heard.set()

    assert talk(play).run("sh", echoed, hear) == 4
    assert output == b"output "


def test_a_killed_script_has_the_status_of_its_shell(talk: Talk) -> None:
    def play(guest: Guest) -> None:
        mark = guest.hear()
        guest.answer(b"text " + mark[:15], 137)

    output, status = run(talk(play))
    assert status == 137
    assert output.startswith(b"text obuild-")
    assert len(output) == 20


def test_steps_run_one_after_the_other(talk: Talk) -> None:
    def play(guest: Guest) -> None:
        for number in range(3):
            mark = guest.hear()
            guest.answer(b"%d %s %d\n" % (number, mark, number))

    shell = talk(play)
    assert [run(shell) for _ in range(3)] == [(b"0 ", 0), (b"1 ", 1), (b"2 ", 2)]


def test_a_long_script_arrives_complete(talk: Talk) -> None:
    heard: list[bytes] = []

    def play(guest: Guest) -> None:
        heard.append(guest.hear())
        guest.answer()

    talk(play).check("sh", b"x" * 5 * MIB, what="x")
    assert heard == [b"x" * 5 * MIB]


# -- checks, streams and files


def writes(pieces: Iterable[bytes]) -> Callable[[io.BytesIO], None]:
    """Return a function that sends a stream."""

    def send(sink: io.BytesIO) -> None:
        for data in pieces:
            sink.write(data)

    return send


def test_a_successful_check_returns_nothing(talk: Talk) -> None:
    def play(guest: Guest) -> None:
        assert guest.hear() == b"script"
        assert guest.kind == "check"
        guest.answer(b"never mind")

    talk(play).check("sh", b"script", what="x")


def test_a_failed_check_is_an_error_with_the_end_of_its_output(talk: Talk) -> None:
    def play(guest: Guest) -> None:
        guest.hear()
        guest.answer(b"no\xff room\n", 1)
        guest.hear()
        guest.answer(b"long" * MIB + b"the end\n", 1)

    shell = talk(play)
    with pytest.raises(MachineError) as caught:
        shell.check("sh", b"", what="making room")
    assert caught.value.message == "making room failed in the guest: no\N{REPLACEMENT CHARACTER} room"
    with pytest.raises(MachineError, match=r"longthe end$") as caught:
        shell.check("sh", b"", what="x")
    assert len(caught.value.message) < 3000


@pytest.mark.parametrize(
    ("written", "pieces"),
    [
        ([], []),
        ([b"", b"a", b"bc"], [b"abc"]),
        ([bytes([number]) * MIB for number in range(10)], None),
        ([b"x" * (PIECE - 1), b"yz"], [b"x" * (PIECE - 1) + b"yz"]),
    ],
)
def test_a_stream_arrives_in_pieces(talk: Talk, written: list[bytes], pieces: list[bytes] | None) -> None:
    got: list[bytes] = []

    def play(guest: Guest) -> None:
        assert guest.hear() == b"tar -x\n"
        assert guest.kind == "stream"
        while piece := guest.piece():
            got.append(piece)
        guest.answer()

    talk(play).stream("tar -x", writes(written), what="x")
    assert b"".join(got) == b"".join(written)
    assert got == pieces if pieces is not None else [len(piece) for piece in got] == [PIECE, PIECE, 2 * MIB]


def test_a_command_that_fails_before_it_has_read_everything_is_an_error(talk: Talk) -> None:
    """Its output may be larger than the buffers if nobody reads it."""

    def play(guest: Guest) -> None:
        guest.hear()
        guest.say(b"no room\n" * MIB)
        while guest.piece():
            pass
        guest.answer(b"really\n", 2)

    with pytest.raises(MachineError, match=r"(?s)^unpacking failed in the guest: .*no room\nreally$"):
        talk(play).stream("x", writes([bytes(MIB)] * 20), what="unpacking")


def test_a_stream_is_ended_even_if_its_sender_fails(talk: Talk) -> None:
    def play(guest: Guest) -> None:
        guest.hear()
        assert guest.piece() == b"half"
        assert guest.piece() == b""

    def send(sink: io.BytesIO) -> None:
        sink.write(b"half")
        raise OSError("the file has changed")

    with pytest.raises(OSError, match="has changed"):
        talk(play).stream("x", send, what="x")


def test_fetched_data_comes_through_the_data_port(talk: Talk) -> None:
    """Messages and data do not mix, whatever their order."""

    def play(guest: Guest) -> None:
        assert guest.hear() == b"tar -c"
        assert guest.kind == "fetch"
        for data in (b"\0obuild-", b"\xff" * MIB, b"end"):
            guest.say(b"a warning\n")
            guest.send(data)
        guest.send(guest.mark + b" 0\n")
        guest.answer()

    out = io.BytesIO()
    talk(play).fetch("sh", b"tar -c", out, what="x")
    assert out.getvalue() == b"\0obuild-" + b"\xff" * MIB + b"end"


def test_a_failed_fetch_is_an_error(talk: Talk) -> None:
    def play(guest: Guest) -> None:
        guest.hear()
        guest.answer(b"no such file\n", 1)  # may arrive before the data, on the other port
        guest.send(b"half" + guest.mark + b" 0\n")

    with pytest.raises(MachineError, match=r"^packing failed in the guest: no such file$"):
        talk(play).fetch("sh", b"x", io.BytesIO(), what="packing")


def test_noise_after_the_end_of_a_fetch_is_ignored(talk: Talk) -> None:
    """A background process of a step may print anything."""

    def play(guest: Guest) -> None:
        guest.hear()
        guest.answer(b"", 0)
        guest.say(b"noise\n" * 1000)
        guest.send(b"all" + guest.mark + b" 0\n")
        guest.hear()
        guest.answer(b"the next\n", 1)

    shell, out = talk(play), io.BytesIO()
    shell.fetch("sh", b"x", out, what="x")
    assert out.getvalue() == b"all"
    with pytest.raises(MachineError, match=r"(?s)the next$"):
        shell.check("sh", b"", what="y")


def test_a_file_is_sent_and_fetched(talk: Talk, tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "here").write_bytes(content)

    def play(guest: Guest) -> None:
        assert guest.hear() == b"exec cat >/there\n"
        got = b""
        while piece := guest.piece():
            got += piece
        guest.answer()
        assert guest.hear() == b"exec cat /there\n"
        guest.send(got + guest.mark + b" 0\n")
        guest.answer()

    shell = talk(play)
    shell.put(tmp_path / "here", "/there")
    shell.get("/there", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content


# -- between steps


def test_freeze_returns_nothing_if_the_guest_froze(talk: Talk) -> None:
    def play(guest: Guest) -> None:
        assert guest.hear() == b""
        assert guest.kind == "freeze"
        guest.say(b"noise" + guest.mark[:5])
        guest.say(guest.mark[5:] + b" fro")
        guest.say(b"zen\n")

    assert talk(play).freeze() == ""


def test_freeze_returns_why_the_guest_needs_a_boot(talk: Talk) -> None:
    def play(guest: Guest) -> None:
        guest.hear()
        guest.say(b"noise\n%s boot /etc/fstab 2026-01-01 caf\xc3\n" % guest.mark)

    assert talk(play).freeze() == "/etc/fstab 2026-01-01 caf\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("verdict", [b"", b"0", b"frozenly", b"bootwhy"])
def test_an_unexpected_answer_is_an_error(talk: Talk, verdict: bytes) -> None:
    def play(guest: Guest) -> None:
        guest.hear()
        guest.say(b"sh: not found\n%s %s\n" % (guest.mark, verdict))

    with pytest.raises(MachineError, match=r"unexpected reply from the guest.s shell: .*not found"):
        talk(play).freeze()


@pytest.mark.parametrize(("seed", "told"), [("c0ffee", "c0ffee"), ("", "-")])
@pytest.mark.parametrize(("network", "word"), [(True, "open"), (False, "closed")])
@pytest.mark.parametrize(("status", "can"), [(0, True), (1, False)])
def test_thaw_sends_the_time_a_seed_and_the_network(
    talk: Talk,
    seed: str,
    told: str,
    network: bool,
    word: str,
    status: int,
    can: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("obuild.executors.qemu.agent.time.time", lambda: 1234567890.1234)

    def play(guest: Guest) -> None:
        now, heard_seed, heard, token = guest.line()
        assert (now, heard_seed, heard) == ("1234567890.123", told, word)
        guest.say(f"noise {token} {status}\n".encode())

    assert talk(play).thaw(network=network, seed=seed) is can


@pytest.mark.parametrize("script", [b"a\\b %s 'c'\n", bytes(range(1, 256)), b"\n\n", b"x" * agent.SHORT])
@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_a_short_script_is_sent_as_a_line_that_a_shell_decodes(shell: str, script: bytes) -> None:
    line = agent._escaped(script)
    assert line.count(b"\n") == 1
    read = "IFS= read -r line; printf '%b' \"$line\""
    assert subprocess.run([shell, "-c", read], input=line, stdout=subprocess.PIPE, check=True).stdout == script


def test_a_guest_that_does_not_thaw_is_an_error(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "THAW_TIMEOUT", 0)
    shell = talk(lambda guest: guest.line())
    with pytest.raises(MachineError, match="did not answer within 0 s"):
        shell.thaw(network=False, seed="")


# -- the end

ACTIONS: dict[str, Callable[[Resident], object]] = {
    "run": run,
    "check": lambda shell: shell.check("sh", b"script", what="x"),
    "stream": lambda shell: shell.stream("x", writes([bytes(50 * MIB)]), what="x"),
    "fetch": lambda shell: shell.fetch("sh", b"script", io.BytesIO(), what="x"),
    "freeze": lambda shell: shell.freeze(),
    "thaw": lambda shell: shell.thaw(network=True, seed=""),
}


@pytest.mark.parametrize("words", [b"", b"half a line"])
@pytest.mark.parametrize("action", ACTIONS)
def test_a_guest_that_disappears_is_a_lost_machine(talk: Talk, action: str, words: bytes) -> None:
    def play(guest: Guest) -> None:
        guest.line()
        guest.say(words)
        guest.go()

    with pytest.raises(MachineError, match="QEMU is gone"):
        ACTIONS[action](talk(play))


@pytest.mark.parametrize("action", ACTIONS)
def test_the_error_says_why_the_machine_stopped(talk: Talk, action: str) -> None:
    def play(guest: Guest) -> None:
        guest.line()
        guest.machine.stopped = "it panicked"
        guest.go()

    with pytest.raises(MachineError, match="it panicked"):
        ACTIONS[action](talk(play))


@pytest.mark.parametrize("action", ACTIONS)
def test_a_machine_that_is_gone_accepts_no_request(talk: Talk, action: str) -> None:
    shell = talk(lambda guest: guest.go())
    while not select.select([shell.machine.control], [], [], 30)[0]:
        pass
    with pytest.raises(MachineError, match="QEMU is gone"):
        ACTIONS[action](shell)
