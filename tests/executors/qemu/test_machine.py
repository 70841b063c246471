"""One QEMU process: real ones, with boot sectors as guests."""

from __future__ import annotations

import errno
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from threading import Timer

import pytest

from obuild.errors import MachineError
from obuild.executors.qemu import kvm, machine, ssh
from obuild.executors.qemu.arches import ARCHES
from obuild.executors.qemu.argv import Memory
from obuild.executors.qemu.machine import Machine
from obuild.executors.qemu.shape import Kernel, Shape
from obuild.host.process import CancelScope
from tests.support.fakes import HALT, POWER_OFF, RESET, boot_disk, other_process

pytestmark = pytest.mark.skipif(
    not (shutil.which("qemu-system-x86_64") and shutil.which("setpriv")), reason="needs QEMU and setpriv"
)

SHAPE = Shape(accel="tcg", cpus=1, memory=32 << 20, boot_time=60.0)
IMPATIENT = Shape(accel="tcg", cpus=1, memory=32 << 20, boot_time=0.01)

#: Halts in the boot sector, after its output.
AT_REST = re.compile(r"EIP=00007c.*HLT=1")

#: out 0x505, 1: tells the device that the guest has panicked.
PANIC, PVPANIC = bytes.fromhex("ba0505 b001 ee"), ["-device", "pvpanic"]

#: out 0x602, 0x100; mov dx, 0x600; 1: in ax, dx; test ah, 1; jz 1b; out dx, 0x100: waits for ACPI's power button.
PRESSED = bytes.fromhex("ba0206 b80001 ef ba0006 ed f6c401 74fa b80001 ef")

#: For riscv64, loaded as a kernel: counts, so that QEMU has time to greet us, and then calls the firmware for
#: SBI's system reset, of type shutdown.  lui t0, 0x4000; 1: addi t0, t0, -1; bnez t0, 1b li a7, 0x53525354; li a6,
#: 0; li a0, 0; li a1, 0; ecall; 2: j 2b
RISCV_POWER_OFF = b"".join(
    word.to_bytes(4, "little")
    for word in (0x040002B7, 0xFFF28293, 0xFE029EE3, 0x535258B7, 0x35488893, 0x813, 0x513, 0x593, 0x73, 0x6F)
)

ORPHAN = """
import sys
from pathlib import Path
from obuild.executors.qemu import machine
from obuild.executors.qemu.shape import Shape
from obuild.host.process import CancelScope
image = Path(sys.stdin.readline().strip())
with machine.start(Shape(accel="tcg", cpus=1, memory=32 << 20), image, CancelScope(), network=False) as m:
    print(m.child.pid, flush=True)
    sys.stdin.read()
"""

Boot = Callable[..., AbstractContextManager[Machine]]


@pytest.fixture
def image(tmp_path: Path) -> Callable[[str, bytes], Path]:
    """A bootable qcow2 image whose guest prints something and then acts."""

    def make(says: str, then: bytes) -> Path:
        (tmp_path / "raw").write_bytes(boot_disk(says, then))
        path = tmp_path / "image.qcow2"
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", tmp_path / "raw", path], check=True)
        return path

    return make


@pytest.fixture
def boot(image: Callable[[str, bytes], Path]) -> Boot:
    def start(then: bytes, *, says: str = "", shape: Shape = SHAPE) -> AbstractContextManager[Machine]:
        return machine.start(shape, image(says, then), CancelScope(), network=False)

    return start


@pytest.fixture
def halted(boot: Boot) -> Iterator[Machine]:
    """A guest that reacts to nothing."""
    with boot(HALT, says="up", shape=IMPATIENT) as guest:
        command: dict[str, object] = {"command-line": "info registers"}
        while not AT_REST.search(guest.qmp.execute("human-monitor-command", command)):
            guest.pause(0.01)
        yield guest


def test_obuild_uses_no_temporary_files(boot: Boot, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill would leave them behind, so QEMU's output and the disk of the KVM probe are in memory."""
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")  # making a file there fails
    with boot(POWER_OFF) as guest:
        guest.power_off(ask=False)
    kvm._run_probe("x86_64")


def test_a_guest_that_powers_off_ends_qemu_cleanly(boot: Boot) -> None:
    with boot(POWER_OFF) as guest:
        guest.power_off(ask=False)
        assert guest.child.returncode == 0


@pytest.mark.parametrize(("ask", "status", "fine"), [(False, 0, True), (False, -9, False), (True, 0, False)])
def test_qemu_may_end_if_the_guest_was_told_to_power_off(
    boot: Boot, monkeypatch: pytest.MonkeyPatch, ask: bool, status: int, fine: bool
) -> None:
    with boot(HALT) as guest, monkeypatch.context() as patch:
        guest.child.kill()
        guest.child.wait()
        patch.setattr(guest.child, "wait", lambda: status)
        with nullcontext() if fine else pytest.raises(MachineError):
            guest.power_off(ask=ask)


def test_if_a_guest_does_not_power_off_the_error_shows_its_console(halted: Machine) -> None:
    with pytest.raises(MachineError, match=r"(?s)did not power off within 0\.01 s.*\nup") as caught:
        halted.power_off()
    assert "ACPI" in caught.value.hint


def test_a_guest_that_does_not_hear_its_power_button_gets_it_pressed_again(
    boot: Boot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_PRESS_AGAIN", 0.2)
    with boot(PRESSED + PRESSED + POWER_OFF) as guest:
        guest.power_off()
        assert guest.child.returncode == 0


def test_a_guest_that_reboots_has_not_powered_off(boot: Boot) -> None:
    with boot(RESET) as guest, pytest.raises(MachineError, match="rebooted instead of powering off"):
        guest.power_off(ask=False)


@pytest.mark.parametrize(("then", "what"), [(POWER_OFF, "powered off"), (RESET, "rebooted")])
def test_a_guest_that_stops_by_itself_ends_a_wait(boot: Boot, then: bytes, what: str) -> None:
    with (
        boot(then, says="bye") as guest,
        pytest.raises(MachineError, match=rf"(?s){what} before the step was done.*bye"),
    ):
        guest.pause(60.0)


@pytest.mark.parametrize("wait", ["ended", "pause", "power_off"])
def test_a_panic_ends_every_wait(image: Callable[[str, bytes], Path], wait: str) -> None:
    with machine.start(SHAPE, image("bye", PANIC), CancelScope(), network=False, extra=PVPANIC) as guest:
        if wait == "ended":
            assert guest.ended(60.0) == "guest-panic"
            return
        with pytest.raises(MachineError, match=r"(?s)the guest panicked .*bye"):
            guest.pause(60.0) if wait == "pause" else guest.power_off(ask=False)


def test_a_stop_during_another_command_is_noticed(boot: Boot) -> None:
    with boot(POWER_OFF) as guest:
        while not any(event["event"] == "SHUTDOWN" for event in guest.qmp.events):
            guest.connected()
        with pytest.raises(MachineError, match="powered off"):
            guest.pause(0.01)


def test_a_readable_descriptor_ends_a_pause(halted: Machine) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"x")
    assert halted.pause(60.0, reading)
    os.close(reading)
    os.close(writing)
    assert not halted.pause(0.01)


def test_a_disk_that_cannot_be_written_is_a_host_error(halted: Machine) -> None:
    halted.qmp.events.append({"event": "BLOCK_IO_ERROR", "data": {"reason": "No space left on device"}})
    with pytest.raises(OSError, match="No space left on device"):
        halted.check()


def test_a_killed_qemu_is_a_lost_machine(halted: Machine) -> None:
    halted.child.kill()
    halted.child.wait()
    calls = (lambda: halted.pause(60.0), halted.connected, halted.check, halted.power_off)
    for call in calls:
        with pytest.raises(MachineError, match="QEMU was killed by signal 9 before the step was done"):
            call()
    assert halted.console() == ""


def test_the_last_event_of_qemu_says_why_it_ended(halted: Machine) -> None:
    halted.child.terminate()
    halted.child.wait()
    with pytest.raises(MachineError, match="the guest stopped \\(host-signal\\) before the step was done"):
        halted.check()


@pytest.mark.skipif(not shutil.which(ARCHES["riscv64"].binary), reason="needs QEMU for riscv64")
def test_a_guest_whose_power_switch_ends_qemu_has_powered_off(
    image: Callable[[str, bytes], Path], tmp_path: Path
) -> None:
    (tmp_path / "kernel").write_bytes(RISCV_POWER_OFF)
    shape = Shape("riscv64", cpus=1, memory=64 << 20, kernel=Kernel(tmp_path / "kernel", None, ""))
    with (
        pytest.raises(MachineError, match=r"^the guest powered off before the step was done"),
        machine.start(shape, image("", HALT), CancelScope(), network=False) as guest,
    ):
        guest.pause(60.0)
    with machine.start(shape, image("", HALT), CancelScope(), network=False) as guest:
        guest.power_off(ask=False)


def test_logging_in_to_a_lost_machine_fails(halted: Machine, tmp_path: Path) -> None:
    halted.child.kill()
    halted.child.wait()
    with pytest.raises(MachineError):
        ssh.wait_for_banner(halted, float("inf"))


@pytest.mark.skipif(not shutil.which("swtpm"), reason="needs Debian's package swtpm")
def test_a_machine_can_have_a_tpm_which_ends_with_it(boot: Boot, tmp_path: Path) -> None:
    folder = tmp_path / "a,b"
    with boot(HALT, shape=SHAPE._replace(tpm=folder)) as machine:
        (device,) = machine.qmp.execute("query-tpm")
        assert (device["model"], device["options"]["type"]) == ("tpm-crb", "emulator")
        children = Path("/proc/thread-self/children").read_text().split()
        (tpm,) = [child for child in children if Path(f"/proc/{child}/comm").read_text() == "swtpm\n"]
    assert not Path(f"/proc/{tpm}").exists()
    assert [path.name for path in folder.iterdir() if path.suffix == ".permall"] == ["tpm2-00.permall"]


@pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt(), MachineError("no")])
def test_leaving_the_block_always_ends_qemu(boot: Boot, error: BaseException) -> None:
    with boot(HALT) as first:
        pass
    with pytest.raises(type(error)), boot(HALT) as second:
        raise error
    assert [first.child.returncode, second.child.returncode] == [-9, -9]


def test_qemu_does_not_outlive_a_killed_process(image: Callable[[str, bytes], Path]) -> None:
    with other_process(ORPHAN) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.write(f"{image('', HALT)}\n")
        parent.stdin.flush()
        qemu = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
        ready, _, _ = select.select([qemu], [], [], 60.0)
        os.close(qemu)
        assert ready, "QEMU is still there"


@pytest.mark.parametrize(
    ("shape", "why"),
    [
        (Shape(accel="tcg", cpus=10_000, memory=32 << 20), "CPUs"),
        (Shape(accel="tcg", cpus=1, memory=1 << 60), "memory"),
    ],
)
def test_if_a_machine_cannot_start_the_error_quotes_qemu(
    image: Callable[[str, bytes], Path], shape: Shape, why: str
) -> None:
    with (
        pytest.raises(MachineError, match=rf"(?is)did not start.*{why}"),
        machine.start(shape, image("", HALT), CancelScope(), network=False),
    ):
        pass


def test_an_image_that_is_not_qcow2_is_refused(raw_disk: Path) -> None:
    with pytest.raises(MachineError, match="qcow2"), machine.start(SHAPE, raw_disk, CancelScope(), network=False):
        pass


def test_the_console_shows_its_last_lines_without_escape_sequences(boot: Boot) -> None:
    lines = "".join(f"{number}\r\n" for number in range(30))
    with boot(POWER_OFF, says=f"{lines}\x1b[31mred\x1b[0m\x07 end") as guest:
        guest.qmp.wait_event("SHUTDOWN", timeout=60.0)
        assert guest.console().splitlines() == [*map(str, range(30 - machine.CONSOLE_LINES + 1, 30)), "red end"]


def test_the_console_can_be_read_again(halted: Machine) -> None:
    assert [halted.console(), halted.console()] == ["up", "up"]


def test_an_empty_console_is_reported_as_empty(boot: Boot) -> None:
    with boot(HALT) as guest:
        assert "console is empty" in guest.error("x").message


def test_a_connection_to_qemu_is_not_one_to_the_guest(halted: Machine) -> None:
    with socket.create_connection(("127.0.0.1", halted.port), timeout=60.0):
        assert not halted.connected()


# -- machines that can be saved

WARM = SHAPE._replace(warm=True)


def test_a_machine_that_can_be_saved_starts_paused(image: Callable[[str, bytes], Path]) -> None:
    with machine.start(WARM, image("up", POWER_OFF), CancelScope(), network=False, memory=Memory()) as guest:
        assert guest.qmp.execute("query-status")["status"] == "prelaunch"
        assert guest.console() == ""
        guest.qmp.execute("cont")
        assert guest.qmp.wait_event("SHUTDOWN", timeout=60.0)
        assert guest.console() == "up"
        assert not guest.control.getblocking()
        assert not guest.data.getblocking()


@pytest.mark.parametrize("network", [True, False])
def test_the_network_of_a_machine_that_can_be_saved_can_be_switched(
    image: Callable[[str, bytes], Path], network: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with machine.start(WARM, image("", HALT), CancelScope(), network=network, memory=Memory()) as guest:
        told: list[object] = []
        ports = [guest.port]
        execute = guest.qmp.execute

        def remember(command: str, arguments: dict[str, object]) -> object:
            if command == "set_link":
                told.append(arguments)
            return execute(command, arguments)

        with monkeypatch.context() as patch:
            patch.setattr(guest.qmp, "execute", remember)
            for other in (not network, network):
                guest.switch(network=other)
                ports.append(guest.port)
        first, second, third = ports
        assert first == third != second
        words = {True: ("closed", "open"), False: ("open", "closed")}
        assert told == [
            {"name": name, "up": up}
            for now in (not network, network)
            for name, up in zip(words[now], (False, True), strict=True)
        ]


@pytest.mark.parametrize(
    ("watched", "open_", "fine"), [(True, False, False), (True, True, True), (False, False, True)]
)
def test_a_closed_port_means_that_the_resident_shell_has_ended(
    halted: Machine, watched: bool, open_: bool, fine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "SHUTDOWN_GRACE", 0.1)
    halted.watched = watched
    halted.qmp.events.append({"event": "VSERPORT_CHANGE", "data": {"open": open_, "id": "port1"}})
    with nullcontext() if fine else pytest.raises(MachineError, match="the shell that runs obuild's steps"):
        halted.check()


CLOSED_PORT = {"event": "VSERPORT_CHANGE", "data": {"open": False, "id": "port1"}}
POWERED_OFF = {"event": "SHUTDOWN", "data": {"guest": True, "reason": "guest-shutdown"}}


@pytest.mark.parametrize("events", [(CLOSED_PORT, POWERED_OFF), (POWERED_OFF, CLOSED_PORT)])
def test_a_power_off_is_not_reported_as_a_lost_shell(
    halted: Machine, events: tuple[dict[str, object], ...]
) -> None:
    halted.watched = True
    halted.qmp.events += events
    with pytest.raises(MachineError, match=r"^the guest powered off before the step was done"):
        halted.check()


def test_a_power_off_soon_after_the_shell_ended_is_the_reason(halted: Machine) -> None:
    halted.watched = True
    halted.qmp.events.append(CLOSED_PORT)
    Timer(0.5, lambda: halted.child.terminate()).start()  # QEMU reports this like any shutdown, and ends
    with pytest.raises(MachineError, match=r"^the guest stopped \(host-signal\) before the step was done"):
        halted.check()


def test_the_end_of_qemu_soon_after_a_port_closed_is_the_reason(halted: Machine) -> None:
    halted.watched = True
    halted.qmp.events.append(CLOSED_PORT)
    Timer(0.5, lambda: halted.child.kill()).start()
    with pytest.raises(MachineError, match=r"^QEMU was killed by signal 9 before the step was done"):
        halted.check()


def test_the_error_for_a_lost_port_says_why_qemu_ended(halted: Machine) -> None:
    Timer(0.5, lambda: halted.child.kill()).start()
    with pytest.raises(MachineError, match=r"^QEMU was killed by signal 9 before the step was done"):
        halted.lost()


def test_no_room_for_the_guests_memory_is_a_host_error(halted: Machine) -> None:
    """The kernel kills QEMU like this if a page of a file cannot be written."""
    os.kill(halted.child.pid, signal.SIGBUS)
    halted.child.wait()
    with pytest.raises(OSError, match="no room for the guest's memory") as caught:
        halted.check()
    assert caught.value.errno == errno.ENOSPC


USERNET = """Hub -1 (net0):\r
  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r
  {lines}\r
"""


@pytest.mark.parametrize(
    ("line", "connected"),
    [
        ("TCP[ESTABLISHED]   12       127.0.0.1 40017       10.0.2.15    22     0     0", True),
        ("TCP[SYN_SENT]      12       127.0.0.1 40017       10.0.2.15    22     0     0", False),
        ("TCP[ESTABLISHED]   12       10.0.2.15 50000    151.101.2.132   443     0     0", False),
        ("TCP[HOST_FORWARD]   9       127.0.0.1 40017       10.0.2.15    22     0     0", False),
    ],
)
def test_only_an_established_connection_to_port_22_counts(line: str, connected: bool) -> None:
    assert bool(machine._ESTABLISHED.search(USERNET.format(lines=line))) is connected
