"""Failures of machines: each gives one clear message and leaves no QEMU, and the next build works."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from obuild.executors.qemu.ssh import make_key
from obuild.store.layers import Store
from tests.support.program import Program, assert_clean, machines, new_store, running

pytestmark = pytest.mark.vm

Spec = Callable[[str], Path]

#: Prints "stuck" on the serial port and halts: mov $0x3f8,%dx; mov $msg,%si; 1: lodsb; test; jz; outb; jmp 1b
STUCK = (
    b"\xfa\x31\xc0\x8e\xd8"  # cli; xor %ax,%ax; mov %ax,%ds
    b"\xbe\x17\x7c\xba\xf8\x03"  # mov $0x7c17,%si; mov $0x3f8,%dx
    b"\xac\x84\xc0\x74\x03\xee\xeb\xf8"  # 1: lodsb; test %al,%al; jz 2f; outb %al,%dx; jmp 1b
    b"\xf4\xeb\xfd\x90"  # 2: hlt; jmp 2b; nop
    b"I am stuck here\n\0"
).ljust(510, b"\0") + b"\x55\xaa"


#: How many bytes are left in a small store, besides a base image and its layer.
ROOM = 60 << 20


def test_a_guest_that_never_answers_is_killed_and_its_console_shown(
    spec: Spec, source: Path, tmp_path: Path
) -> None:
    program = Program(Store.open(tmp_path / "store").root)
    make_key(program.store / "state/ssh/id_ed25519")
    disk = tmp_path / "stuck.raw"
    disk.write_bytes(STUCK.ljust(1 << 20, b"\0"))
    program("base", "add", disk, "--name", "stuck")
    path = spec('((from stuck) (run (shell "true")))')
    done = program.build(path, source, "--qemu-boot-time", "2", code=1)
    assert "did not answer SSH within 2 s" in done.stderr
    assert "I am stuck here" in done.stderr
    assert "--qemu-boot-time" in done.stderr
    assert_clean(program)


def test_a_machine_that_cannot_start_is_one_clear_error(shared: Program, spec: Spec, source: Path) -> None:
    path = spec('((from micro) (run (shell "echo never")))')
    done = shared.build(path, source, "--qemu-memory", "1000000", code=1)  # GiB
    assert "QEMU did not start" in done.stderr
    assert "--qemu-memory" in done.stderr
    assert_clean(shared)


def test_a_signal_is_in_the_status_and_a_store_may_be_relative(
    ready: Program, spec: Spec, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ready.store.parent)
    path = spec('((from micro) (run (shell "echo begun; kill -9 $$")))')
    done = Program(Path(ready.store.name)).build(path, source, code=1)
    assert "begun\n" in done.stdout
    assert '"echo begun; kill -9 $$" failed with exit status 137' in done.stderr
    assert_clean(ready)


@pytest.mark.parametrize(("command", "said"), [("poweroff -f", "powered off"), ("reboot -f", "rebooted")])
def test_the_error_says_how_a_guest_stopped_in_a_step(
    shared: Program, spec: Spec, source: Path, kept_warm: bool, command: str, said: str
) -> None:
    stop = f"echo before; echo on its console >/dev/console; sync; busybox {command}; sleep 1000"
    done = shared.build(spec(f'((from micro) (run (shell "{stop}")))'), source, code=1)
    assert "before\n" in done.stdout or not kept_warm  # its SSH server may not have sent it yet
    assert f"the guest {said} before the step was done" in done.stderr
    # Where the guest's power switch ends QEMU, the console is lost, and the message does not mention it.
    assert ("on its console" in done.stderr) == ("console" in done.stderr)
    assert_clean(shared)


def test_a_power_off_that_ends_processes_first_is_reported_as_one(
    shared: Program, spec: Spec, source: Path
) -> None:
    """As in a shutdown, which ends the resident shell first."""
    path = spec("""((from micro) (run (shell "
      echo before
      (sleep 2; busybox poweroff -f) &
      cat /sys/fs/cgroup/obuild/shell/cgroup.procs /run/obuild/cgroup/obuild/shell/cgroup.procs 2>/dev/null |
        while read -r process; do kill -9 $process; done
      sleep 1000")))""")
    done = shared.build(path, source, code=1)
    assert "before\n" in done.stdout
    assert "the guest powered off before the step was done" in done.stderr
    assert_clean(shared)


@pytest.mark.long
def test_a_key_that_the_guest_does_not_accept_is_an_error(fresh: Program, spec: Spec, source: Path) -> None:
    fresh.build(spec("((from micro))"), source)  # the first layer gets the store's key
    (fresh.store / "state/ssh/id_ed25519").unlink()
    make_key(fresh.store / "state/ssh/id_ed25519")
    done = fresh.build(spec('((from micro) (run (shell "true")))'), source, code=1)
    assert "does not accept the key" in done.stderr
    assert_clean(fresh)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_guest_and_the_next_build_continues(
    ready: Program, spec: Spec, source: Path, number: signal.Signals
) -> None:
    path = spec('((from micro) (run (shell "echo started; test -e /go || sleep 10000")))')
    with running(ready, path, source, "started") as child:
        assert machines(ready.store)
        child.send_signal(number)
        _, errors = child.communicate()
    assert child.returncode == 130
    assert b"interrupted" in errors
    assert b"Traceback" not in errors
    assert_clean(ready)
    again = spec('((from micro) (run (shell "echo fine")))')
    assert "fine\n" in ready.build(again, source).stdout


def test_kill_9_leaves_no_guest_and_the_next_build_cleans_up(ready: Program, spec: Spec, source: Path) -> None:
    path = spec('((from micro) (run (cache (c (target /c))) (shell "echo started; sleep 10000")))')
    with running(ready, path, source, "started") as child:
        (pid,) = machines(ready.store)
        handle = os.pidfd_open(pid)
        child.kill()
        child.communicate()
    select.select([handle], [], [], 30)  # readable once QEMU has ended
    os.close(handle)
    assert machines(ready.store) == []
    assert any((ready.store / "result-tmp").iterdir())
    ready.build(spec("((from micro))"), source)
    assert_clean(ready)


@pytest.fixture
def small(tmp_path: Path, micro_images: Path) -> Iterator[Program]:
    """A store on a small file system."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    mount = tmp_path / "small"
    mount.mkdir()
    # Room for the image and its layer, and for less than a step below will write.
    image = sum(path.stat().st_blocks * 512 for path in (micro_images / "base-image").iterdir())
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={2 * image + ROOM}", "tmpfs", mount], check=True)
    try:
        yield Program(new_store(mount / "store", micro_images))
    finally:
        subprocess.run(["umount", mount], check=True)


@pytest.mark.long
def test_a_full_disk_is_reported_and_the_build_works_once_there_is_room(
    small: Program, spec: Spec, source: Path
) -> None:
    path = spec('((from micro) (run (shell "dd if=/dev/urandom of=/big bs=1M count=80 && sync; echo written")))')
    done = small.build(path, source, code=1)
    assert "No space left on device" in done.stderr
    assert "obuild prune --keep-bytes" in done.stderr
    assert_clean(small)
    subprocess.run(["mount", "-o", "remount,size=400M", small.store.parent], check=True)
    assert "written\n" in small.build(path, source).stdout


def test_a_base_without_room_to_import_it_is_one_clear_error(small: Program, spec: Spec, source: Path) -> None:
    free = os.statvfs(small.store)
    (small.store.parent / "filler").write_bytes(b"x" * (free.f_bavail * free.f_frsize - (20 << 20)))
    done = small.build(spec("((from micro))"), source, code=1)
    assert "No space left on device" in done.stderr
    assert_clean(small)
    (small.store.parent / "filler").unlink()
    small.build(spec("((from micro))"), source)


def test_a_file_that_changes_while_it_is_sent_fails_the_step(ready: Program, spec: Spec, source: Path) -> None:
    (source / "file").write_text("before")
    path = spec('((from micro) (run (shell "echo started")) (copy (src file) (dst /file)))')
    with running(ready, path, source, "started") as child:  # after planning, before the copy
        (source / "file").write_text("after!")
        _, errors = child.communicate()
    assert child.returncode == 1
    assert b"'file' changed while it was being copied" in errors
    assert_clean(ready)
