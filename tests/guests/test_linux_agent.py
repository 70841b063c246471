"""The resident shell in a Linux guest: its scripts, and what they do, in the shells that guests have.

It runs on this host here, with sockets for ports. All that would change the host is done by functions that only
write down what they were asked for.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

import pytest

from obuild.errors import MachineError
from obuild.executors.qemu.agent import Resident
from obuild.executors.qemu.machine import Machine
from obuild.executors.qemu.shape import Shape
from obuild.guests import linux_agent
from obuild.guests.posix import say_status
from tests.support.fakes import FakeMachine

MIB = 1 << 20

#: Shells that guests have, and how each is started as sh.
SHELLS = {"dash": ["dash"], "bash": ["bash", "--posix"], "busybox": ["busybox", "sh"]}

shells = pytest.mark.parametrize(
    "shell",
    [
        pytest.param(name, marks=pytest.mark.skipif(not shutil.which(name), reason=f"needs {name}"))
        for name in SHELLS
    ],
)


def told() -> str:
    return linux_agent.start("MARK").decode()


def document(name: str) -> str:
    """The content of one of the shell's files."""
    found = re.search(rf"^cat >\$dir/{name} <<'?END'?\n(.*?)^END$", told(), re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def function(name: str) -> str:
    """A function of the shell."""
    found = re.search(rf"^{name}\(\) \{{\n.*?^\}}$", document("shell"), re.MULTILINE | re.DOTALL)
    assert found
    return found[0]


def run(shell: str, text: str, *, given: bytes = b"") -> str:
    """What a script prints."""
    done = subprocess.run([*SHELLS[shell], "-c", text], input=given, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode()


# -- its scripts


@shells
@pytest.mark.parametrize("part", [told, *(partial(document, name) for name in ("look", "library", "shell"))])
def test_each_shell_can_parse_it(shell: str, part: Callable[[], str]) -> None:
    done = subprocess.run([*SHELLS[shell], "-n"], input=part().encode(), capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_it_ends_with_its_status() -> None:
    assert told().endswith(f"{say_status('MARK', '$?')}\n")


def test_two_guests_get_the_same_script_but_for_their_marks() -> None:
    assert linux_agent.start("MARK").replace(b"MARK", b"other") == linux_agent.start("other")


@shells
def test_a_guest_that_lacks_something_says_what(shell: str, tmp_path: Path) -> None:
    """The shell's own messages do not hide it."""
    for name in ("cat", "sh", "printf"):
        (tmp_path / name).symlink_to(shutil.which(name) or "/bin/busybox")
    argv = [shutil.which(SHELLS[shell][0]) or "", *SHELLS[shell][1:]]
    text = told().replace("dd find", "no-such-tool dd find", 1)
    assert "no-such-tool" in text
    done = subprocess.run(argv, input=text.encode(), capture_output=True, check=True)
    assert done.stdout.decode() == f"it has no no-such-tool\nMARK {linux_agent.LACKING}\n"


@shells
def test_the_program_arrives_unchanged(shell: str, tmp_path: Path) -> None:
    given = re.search(r"^program='.*'$", told(), re.MULTILINE)
    written = re.search(r"^printf '%b' .*>\$dir/tool$", told(), re.MULTILINE)
    assert given
    assert written
    run(shell, f"dir={tmp_path}\n{given[0]}\n{written[0]}")
    assert (tmp_path / "tool").read_bytes() == linux_agent._program()


# -- its parts


@shells
def test_lines_in_only_one_of_two_files(shell: str, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("a\na.c\n\n same\nsame\n-e x\n")
    other.write_text("abc\nsame\nb\n")
    library = document("look")
    assert run(shell, f"{library}\nonly_in {one} {other}") == "a\na.c\n\n same\n-e x\n"
    assert run(shell, f"{library}\nonly_in {other} {one}") == "abc\nb\n"
    assert run(shell, f"{library}\nonly_in {one} {one} || :") == ""
    assert run(shell, f"{library}\ndiffering {other} {one} || :") == "abc\nb\na\na.c\n\n same\n-e x\n"


@shells
def test_the_pieces_of_a_stream_are_joined(shell: str) -> None:
    data = random.Random(1).randbytes(3 * MIB)
    framed = b"".join(b"%d\n%s" % (size, data[:size]) for size in (1, MIB, 3 * MIB)) + b"0\n"
    text = f"{function('pieces')}\nexec 5<&0\npieces | sha256sum; cat"
    want = hashlib.sha256(data[:1] + data[:MIB] + data).hexdigest()
    assert run(shell, text, given=framed + b"the next") == f"{want}  -\nthe next"


# -- the whole shell

#: Replacements for what would change the host, and for what changes by itself there.
HARMLESS = """
for name in mount umount ip route resolvectl; do
    eval "$name() { echo $name \\"\\$@\\" >>$dir/done; [ ! -e $dir/fail-$name ]; }"
done
name_always() {
    echo "f $dir/mountinfo"
    echo "f $dir/setting"
    echo "x $dir/volatile/kept"
    echo "t $dir/volatile"
}
name_written() { echo "f $dir/written-to"; }
who_clears_tmp() { :; }
tmp_is_as_it_was() { [ ! -e $dir/tmp-has-changed ]; }
end_step() { :; }
"""

#: A tool that only reads; it records all other calls.
TOOL = """#!/bin/sh
case $1 in
h | l) exec {folder}/bin/real "$@" ;;
q) [ ! -e {folder}/told ] ;;
*) echo tool "$@" >>{folder}/done; [ ! -e {folder}/fail-tool ] ;;
esac
"""

#: The same for programs.
PROGRAM = '#!/bin/sh\necho {name} "$@" >>{folder}/done\n[ ! -e {folder}/fail-{name} ]\n'

FIFREEZE, FITHAW, RNDRESEEDCRNG = 0xC0045877, 0xC0045878, 0x5207


#: How it opens its ports, and the replacement here: sockets cannot be opened by name.
OPENS, TAKES = "exec 3<>$control 5<>$data\n", "exec 3<&0 5<&1 </dev/null >/dev/null\n"


@dataclass
class Host(FakeMachine):
    """The guest is this host."""

    control: socket.socket | None = None
    data: socket.socket | None = None


@dataclass
class Place:
    """A running shell and its folder."""

    talk: Resident
    folder: Path
    frozen: list[str] = field(default_factory=list)  # what the last freeze did

    @property
    def volatile(self) -> Path:
        return self.folder / "volatile"

    def done(self) -> list[str]:
        """What it would have done to a guest since the last call."""
        path = self.folder / "done"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    def step(self, text: str) -> tuple[bytes, int]:
        """The output and status of a step."""
        output = bytearray()
        status = self.talk.run("", lambda mark: f"( {text}\n)\n{say_status(mark, '$?')}\n".encode(), output.extend)
        return bytes(output), status


Begin = Callable[..., Place]


@pytest.fixture
def begin(tmp_path: Path, shell: str) -> Iterator[Begin]:
    """Start the shell; `settings` are those of its guest."""
    pairs = [socket.socketpair() for _ in range(2)]
    children: list[subprocess.Popen[bytes]] = []

    def start(**settings: str) -> Place:
        for name in ("volatile", "cgroup/shell", "cgroup/step", "bin"):
            (tmp_path / name).mkdir(parents=True)
        about = {
            "tool": f"{tmp_path}/bin/tool",
            "cgroups": f"{tmp_path}/cgroup",
            "group": f"{tmp_path}/cgroup",
            "step": f"{tmp_path}/cgroup/step",
            "control": "/dev/vport0p1",
            "data": "/dev/vport0p2",
            "disks": "/disk/inner /disk",
            "login": "",
            **settings,
        }
        known = {word.partition("=")[0] for word in re.findall(r"\w+=\S", document("settings"))}
        assert known == set(about) - {"clears_tmp"}
        numbers = re.findall(r"^(?:fifreeze|fithaw|reseed|grace|reboot)=.*$", told(), re.MULTILINE)
        lines = [*(f"{name}='{value}'" for name, value in about.items()), *numbers]
        (tmp_path / "settings").write_text("\n".join([*lines, f"reboot={tmp_path}/reboot-required", ""]))
        text = document("shell").replace(linux_agent.FOLDER, str(tmp_path))
        assert text.count(OPENS) == 1
        (tmp_path / "shell").write_text(text.replace(OPENS, TAKES))
        look = document("look").replace("/proc/self/mountinfo", f"{tmp_path}/mountinfo")
        look = look.replace("/proc/loadavg", f"{tmp_path}/loadavg")  # other programs of this host do not count
        (tmp_path / "loadavg").write_text("0.00 0.00 0.00 1/100 1000\n")
        (tmp_path / "look").write_text(look.replace("/run/systemd/system", f"{tmp_path}/no-systemd"))
        (tmp_path / "library").write_text(document("library") + HARMLESS)
        (tmp_path / "mountinfo").write_text(f"9 1 0:9 / {tmp_path}/volatile rw - tmpfs t rw\n")
        for name in ("setting", "written-to"):
            (tmp_path / name).write_text("as it was\n")
        (tmp_path / "bin" / "real").write_bytes(linux_agent._program())
        programs = {
            "sh": f'#!/bin/sh\nexec {" ".join(SHELLS[shell])} "$@"\n',
            "tool": TOOL.format(folder=tmp_path),
            "systemd-tmpfiles": PROGRAM.format(name="systemd-tmpfiles", folder=tmp_path),
        }
        for name, text in programs.items():
            (tmp_path / "bin" / name).write_text(text)
        for path in (tmp_path / "bin").iterdir():
            path.chmod(0o755)
        env = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
        argv = [*SHELLS[shell], str(tmp_path / "shell")]
        (control, its_control), (data, its_data) = pairs
        with its_control, its_data:
            ins, out = its_control.fileno(), its_data.fileno()
            children.append(subprocess.Popen(argv, stdin=ins, stdout=out, start_new_session=True, env=env))
        for port in (control, data):
            port.setblocking(False)
        talk = Resident(cast(Machine, Host(0, Shape(), control=control, data=data)))
        talk.check("", b":", what="starting")  # it has recorded the state before
        return Place(talk, tmp_path)

    yield start
    for child in children:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    for port in (port for pair in pairs for port in pair):
        port.close()


@shells
def test_a_step_in_it(begin: Begin) -> None:
    place = begin()
    assert place.step("printf 'no newline'; exit 3") == (b"no newline", 3)
    assert place.step("cat; printf '\\000\\377'; echo error >&2") == (b"\0\xfferror\n", 0)
    assert (place.folder / "cgroup/step/cgroup.procs").read_text() == "0\n"


@shells
def test_a_step_inherits_none_of_the_shells_descriptors(begin: Begin) -> None:
    assert begin().step("for fd in 3 4 5 6 7; do [ -e /proc/self/fd/$fd ] && echo $fd; done; pwd") == (b"/\n", 0)


@shells
def test_a_script_that_ends_without_its_mark(begin: Begin) -> None:
    place = begin()
    output = bytearray()
    assert place.talk.run("", lambda mark: b"echo hello; exit 9", output.extend) == 9
    killed = b"kill -9 $(exec sh -c 'echo $PPID')"
    assert place.talk.run("", lambda mark: killed, output.extend) == 128 + 9
    assert place.talk.run("", lambda mark: b"if", print) != 0
    assert output == b"hello\n"
    assert place.step("echo next") == (b"next\n", 0)


@shells
def test_background_processes_are_not_waited_for(begin: Begin) -> None:
    place = begin()
    output, status = place.step("sleep 1000 & echo started $!")
    assert (output[:8], status) == (b"started ", 0)
    assert place.step(f"kill {output.split()[1].decode()}; echo next") == (b"next\n", 0)


@shells
def test_a_long_script(begin: Begin) -> None:
    text = b"\n".join(b": %d" % number for number in range(100_000))
    output = bytearray()
    assert begin().talk.run("", lambda mark: text + b"\necho end", output.extend) == 0
    assert output == b"end\n"


@shells
def test_a_check_in_it(begin: Begin) -> None:
    place = begin()
    place.talk.check("", b"echo fine", what="x")
    with pytest.raises(MachineError, match=r"^x failed in the guest: no\nroom$"):
        place.talk.check("", b"echo no; echo room >&2; exit 1", what="x")


@shells
def test_streams_in_it(begin: Begin) -> None:
    place = begin()
    data = random.Random(1).randbytes(10 * MIB)
    for size in (0, 1, 10 * MIB):
        (place.folder / "sent").write_bytes(data[:size])
        place.talk.put(place.folder / "sent", f"{place.folder}/got")
        assert (place.folder / "got").read_bytes() == data[:size]
        place.talk.get(f"{place.folder}/got", place.folder / "back")
        assert (place.folder / "back").read_bytes() == data[:size]


@shells
def test_a_command_that_ends_early_ignores_the_rest(begin: Begin) -> None:
    place = begin()

    def send(sink: io.BytesIO) -> None:
        for _ in range(10):
            sink.write(bytes(MIB))

    with pytest.raises(MachineError, match=r"^x failed in the guest: no room$"):
        place.talk.stream("echo no room; exit 1", send, what="x")
    place.talk.stream("head -c 10 >/dev/null", send, what="x")
    place.talk.stream("yes | head -c 1000000; cat >/dev/null", send, what="x")
    assert place.step("echo next") == (b"next\n", 0)


@shells
def test_a_fetch_that_fails_in_it(begin: Begin) -> None:
    place = begin()
    with pytest.raises(MachineError, match=r"^x failed in the guest: no such file$"):
        place.talk.fetch("", b"echo part; echo no such file >&2; exit 2", io.BytesIO(), what="x")
    out = io.BytesIO()
    place.talk.fetch("", b"echo warning >&2; printf all", out, what="x")
    assert out.getvalue() == b"all"


# -- between steps


def freeze(place: Place) -> str:
    """End a step and freeze; returns why it does not freeze, or "" if it does."""
    why = place.talk.freeze()
    place.frozen = place.done()
    return why


def thaw(place: Place, *, seed: str = "") -> bool:
    return place.talk.thaw(network=False, seed=seed)


def next_step(place: Place, text: str = ":") -> str:
    """Run another step, and freeze."""
    assert thaw(place)
    place.done()
    place.step(text)
    return freeze(place)


@shells
def test_freezing_and_going_on(begin: Begin) -> None:
    place = begin()
    assert freeze(place) == ""
    assert place.frozen == [f"tool i /disk/inner {FIFREEZE}", f"tool i /disk {FIFREEZE}"]
    assert thaw(place)
    clock, *thawed = place.done()
    assert re.fullmatch(r"tool c \d{10}\.\d{3}", clock)
    assert thawed == [f"tool i /disk {FITHAW}", f"tool i /disk/inner {FITHAW}"]
    assert place.step("echo next") == (b"next\n", 0)


@shells
def test_a_resumed_guest_has_its_own_random_numbers_and_the_right_time_before_its_disks(begin: Begin) -> None:
    place = begin(disks="/disk")
    freeze(place)
    assert thaw(place, seed="c0ffee")
    random_numbers, clock, disk = place.done()
    assert random_numbers == f"tool i /dev/urandom {RNDRESEEDCRNG}"
    assert clock.startswith("tool c ")
    assert disk == f"tool i /disk {FITHAW}"


@shells
def test_what_a_step_has_left_in_memory_is_removed(begin: Begin) -> None:
    place = begin()
    assert freeze(place) == ""
    left = f"cd {place.volatile}; mkdir -p deep/er; touch deep/er/x 'a b' ' c ' '*' .hidden; mkdir kept; ln -s x l"
    assert next_step(place, left) == ""
    assert [path.name for path in place.volatile.iterdir()] == ["kept"]


@shells
def test_what_was_there_before_is_kept(begin: Begin) -> None:
    place = begin()
    (place.volatile / "old").touch()
    assert freeze(place) == ""
    next_step(place, f"touch '{place.volatile}/old ' '{place.volatile}/old\nnew'")
    assert (place.volatile / "old").exists()


@shells
def test_a_changed_file_in_memory_means_a_boot(begin: Begin) -> None:
    place = begin()
    (place.volatile / "old").touch()
    assert freeze(place) == ""
    changed = f"the state of the guest has changed: {place.volatile}/old"
    assert next_step(place, f"chmod 711 {place.volatile}/old") == changed


@shells
def test_a_steps_mounts_are_undone_last_first(begin: Begin) -> None:
    place = begin()
    assert freeze(place) == ""
    mounted = "".join(f"{number} 1 0:{number} / /mnt/{number}\\040x rw - tmpfs t rw\n" for number in (51, 52))
    mounts = place.folder / "mountinfo"
    before = mounts.read_text()
    mounts.write_text(before + mounted)
    why = next_step(place)
    assert why.startswith("the state of the guest has changed: the mount 51 1 0:51 / /mnt/51\\040x rw")
    assert place.frozen == ["umount -l /mnt/52 x", "umount -l /mnt/51 x"]
    mounts.write_text(before)
    assert freeze(place) == ""


@shells
@pytest.mark.parametrize("change", [("rw", "rw,nodiratime"), (" - ", " shared:1 - ")])
def test_a_mount_that_a_step_has_changed_is_not_undone(begin: Begin, change: tuple[str, str]) -> None:
    """In particular not the root."""
    place = begin()
    mounts = place.folder / "mountinfo"
    mounts.write_text(f"{mounts.read_text()}24 1 254:1 / / rw - ext4 /dev/vda1 rw\n")
    assert freeze(place) == ""
    mounts.write_text(mounts.read_text().replace(*change))
    assert next_step(place).startswith("the state of the guest has changed: the mount ")
    assert place.frozen == []


@shells
@pytest.mark.parametrize("now", ["as it is\n", "", None])
def test_a_change_of_the_guests_state_means_a_boot(begin: Begin, now: str | None) -> None:
    place = begin()
    assert freeze(place) == ""
    setting = place.folder / "setting"
    setting.unlink()
    if now is not None:
        setting.write_text(now)
    assert next_step(place) == f"the state of the guest has changed: {setting}"
    assert place.frozen == []
    setting.write_text("as it was\n")
    assert freeze(place) == ""


@shells
@pytest.mark.parametrize("reason", ["told", "many programs"])
def test_settings_are_compared_if_one_may_have_been_written(begin: Begin, reason: str) -> None:
    place = begin()
    assert freeze(place) == ""
    (place.folder / "written-to").write_text("changed\n")
    assert next_step(place) == ""
    if reason == "told":
        (place.folder / "told").touch()
    many = f"echo 0.00 0.00 0.00 1/100 1070 >{place.folder}/loadavg"
    assert (
        next_step(place, ":" if reason == "told" else many)
        == f"the state of the guest has changed: {place.folder}/written-to"
    )


@shells
def test_counters_are_not_compared(shell: str, begin: Begin, tmp_path: Path) -> None:
    begin()
    library = document("look")
    counter = tmp_path / "counter"
    (tmp_path / "written").write_text(f"f {counter}\nf {tmp_path}/setting\n")
    tool = f'tool() {{ cat /proc/sys/kernel/random/uuid >{counter}; {tmp_path}/bin/real "$@"; }}'
    begins = f"exec 2>/dev/null\n{library}\n{tool}\ntool=tool dir={tmp_path}"
    begins += "; tool l $dir/written >$dir/written.before 2>$dir/hash"
    run(shell, f"{begins}; only_counters; look written; [ $now = $written ]; cat $dir/written >&1")
    assert (tmp_path / "written").read_text() == f"f {tmp_path}/setting\n"
    changed = f"{begins.replace('; tool l', f'; echo f {counter} >>$dir/written; tool l')}; echo x >$dir/setting"
    run(shell, f"{changed}; ! only_counters")


@shells
def test_a_step_that_asks_for_a_boot_gets_one(begin: Begin) -> None:
    place = begin()
    (place.folder / "reboot-required").touch()
    assert freeze(place) == f"the file {place.folder}/reboot-required exists"
    assert place.frozen == []


@shells
def test_a_folder_that_a_boot_clears(begin: Begin) -> None:
    place = begin(clears_tmp="boot")
    assert freeze(place) == ""
    (place.folder / "tmp-has-changed").touch()
    assert next_step(place) == "a boot clears /tmp"


@shells
def test_a_folder_that_systemd_clears(begin: Begin) -> None:
    place = begin(clears_tmp="systemd")
    for changed in (False, True):
        if changed:
            (place.folder / "tmp-has-changed").touch()
        assert freeze(place) == ""
        assert thaw(place)
        assert any(line.startswith("systemd-tmpfiles ") for line in place.done()) is changed


@shells
def test_a_disk_that_cannot_be_frozen_is_made_read_only(begin: Begin) -> None:
    place = begin(disks="/disk")
    (place.folder / "fail-tool").touch()
    assert freeze(place) == ""
    assert place.frozen == [f"tool i /disk {FIFREEZE}", "mount -o remount,ro /disk"]
    assert thaw(place)
    assert place.done()[1:] == [f"tool i /disk {FITHAW}", "mount -o remount,rw /disk"]


@shells
def test_if_one_disk_cannot_be_frozen_none_is(begin: Begin) -> None:
    place = begin(disks="/a /b /c")
    program = place.folder / "bin" / "tool"
    program.write_text(program.read_text().replace("esac", f"esac; [ $2,$3 != /c,{FIFREEZE} ]"))
    (place.folder / "fail-mount").touch()
    assert freeze(place) == "a file system cannot be frozen"
    frozen = [f"tool i /{name} {FIFREEZE}" for name in "abc"]
    assert place.frozen == [*frozen, "mount -o remount,ro /c", f"tool i /b {FITHAW}", f"tool i /a {FITHAW}"]
