"""Fakes that tests script: an executor without machines, guests without an OS, a second process."""

from __future__ import annotations

import select
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, TypeVar

from obuild.errors import MachineError
from obuild.events import (
    SILENT,
    Event,
    Hit,
    Missing,
    Output,
    PhaseEnded,
    PhaseStarted,
    Place,
    Progress,
    Teller,
    What,
)
from obuild.executors.protocol import OpenExecutor, Outcome, Setup
from obuild.executors.qemu import provision
from obuild.executors.qemu.config import Config
from obuild.executors.qemu.shape import Shape
from obuild.executors.settings import Settings
from obuild.guests.profile import Card
from obuild.host.capability import Capability
from obuild.plan import archive
from obuild.plan.keys import LayerId
from obuild.plan.steps import Command, Extract, Graft, Transfer
from obuild.store.layers import Draft

#: SeaBIOS does not boot a disk smaller than one cylinder.
SMALLEST_DISK = 1 << 20

POWER_OFF = bytes.fromhex("ba0406 b80020 ef")  # out 0x604, 0x2000
RESET = bytes.fromhex("b0fe e664")  # out 0x64, 0xfe
HALT = b""


def boot_disk(says: str, then: bytes) -> bytes:
    """A raw disk whose boot sector writes a text to the serial console, acts, and halts for good."""
    end = then + bytes.fromhex("f4 ebfd")
    text = 0x7C00 + 0x14 + len(end)
    code = bytes.fromhex("fc fa 31c0 8ed8 be") + text.to_bytes(2, "little") + bytes.fromhex("baf803")
    code += bytes.fromhex("ac 84c0 7403 ee ebf8") + end
    assert len(code) == 0x14 + len(end)
    sector = (code + says.encode() + b"\0").ljust(510, b"\0") + b"\x55\xaa"
    return sector.ljust(SMALLEST_DISK, b"\0")


@dataclass
class Run:
    """The session of a scripted step. `files` is the guest's disk: files by absolute path."""

    draft: Draft
    command: Command
    caches: Sequence[Path]
    secrets: Mapping[str, bytes]
    output: Callable[[bytes], object]
    files: dict[str, bytes]

    def new(self, cache: Path) -> Path:
        """The path to which a step writes the new content of the cache with this archive."""
        return cache.with_suffix(".new")


Act = Callable[[Run], int]


@dataclass
class FakeExecutor:
    """Runs no command: calls what `script` has for its text, or else prints the text and succeeds.

    `seen` is what happened, in order, and `commands` those that were run. A shell ends with the status `typed`.
    What is taken out of a guest is `files`, or else what is on its disk; `disks` are those that were sealed.
    """

    script: Mapping[str, Act] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    commands: list[Command] = field(default_factory=list)
    typed: int = 0
    disks: dict[LayerId, dict[str, bytes]] = field(default_factory=dict)

    @contextmanager
    def open(self, draft: Draft, *, network: bool, tell: Teller = SILENT) -> Iterator[FakeSession]:
        draft.lay()
        self.seen.append("open with network" if network else "open")
        disk = dict(self.disks.get(draft.parent, {})) if draft.parent else {}
        try:
            yield FakeSession(self, draft, disk)
        except BaseException:
            self.seen.append("killed")
            raise
        self.seen.append("sealed")
        if not draft.scratch:
            self.disks[draft.id] = disk


@dataclass
class ScriptedGuests:
    """The QEMU executor with scripted guests; everything else is that of this host.

    `configs` is how the machines would have been made; each has the scope that they would belong to.
    """

    executor: FakeExecutor
    configs: list[Config] = field(default_factory=list)

    def check(self, settings: Settings, card: Card) -> None:
        provision.check(settings, card)

    def capabilities(self) -> Iterator[Capability]:
        return provision.capabilities()

    def provision(self, setup: Setup) -> OpenExecutor:
        config = provision.configure(setup)
        self.configs.append(config)
        return lambda: nullcontext(self.executor)


@dataclass
class FakeSession:
    """One open draft of a FakeExecutor."""

    executor: FakeExecutor
    draft: Draft
    disk: dict[str, bytes]

    def run(
        self,
        command: Command,
        caches: Sequence[Path],
        secrets: Mapping[str, bytes],
        output: Callable[[bytes], object],
    ) -> Outcome:
        text = command.argv[-1]
        self.executor.seen.append(text)
        self.executor.commands.append(command)
        act = self.executor.script.get(text, _echo)
        run = Run(self.draft, command, caches, secrets, output, self.disk)
        status = act(run)
        for cache in caches:  # unchanged, unless the step has changed it
            if not run.new(cache).exists():
                run.new(cache).write_bytes(cache.read_bytes() if cache.exists() else EMPTY_TAR)
        return Outcome(status, tuple(map(run.new, caches)))

    def interact(self, command: Command) -> int:
        self.executor.seen.append("shell")
        self.executor.commands.append(command)
        return self.executor.typed

    def address(self) -> str:
        return "ssh guest"

    def wait(self) -> None:
        self.executor.seen.append("wait")
        raise KeyboardInterrupt

    def send(self, action: Transfer) -> None:
        self.executor.seen.append(f"send to {action.dest}")
        sent = BytesIO()
        archive.send(action.tree, sent, uid=0, gid=0)
        sent.seek(0)
        self.disk.update(unpacked(sent, action.dest))

    def take(self, extract: Extract, file: Path) -> None:
        self.executor.seen.append(f"take {' '.join(extract.src)}")
        if files := self.executor.files:
            file.write_bytes(packed(files))
            return
        if lacking := [path for path in extract.src if path not in self.disk]:
            raise MachineError(f"tar: {lacking[0]}: No such file or directory")
        file.write_bytes(packed({path.rpartition("/")[2]: self.disk[path] for path in extract.src}))

    def graft(self, action: Graft, file: Path) -> None:
        self.executor.seen.append(f"graft to {action.dest}: {len(file.read_bytes())} bytes")
        with file.open("rb") as taken:
            self.disk.update(unpacked(taken, action.dest))

    def finish(self) -> None:
        self.executor.seen.append("finished")


def packed(files: Mapping[str, bytes]) -> bytes:
    """A tar archive of files, by name."""
    with BytesIO() as out:
        with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as members:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size, member.mode = len(data), 0o644
                members.addfile(member, BytesIO(data))
        return out.getvalue()


def unpacked(file: BinaryIO, folder: str) -> dict[str, bytes]:
    """The files of such an archive, by path; it is unpacked in `folder`."""
    with tarfile.open(fileobj=file) as members:
        found = {member.name.removeprefix("./"): members.extractfile(member) for member in members}
        return {f"{folder.rstrip('/')}/{name}": data.read() for name, data in found.items() if data}


EMPTY_TAR = packed({})


def _echo(run: Run) -> int:
    run.output(f"{run.command.argv[-1]}\n".encode())
    return 0


Kind = TypeVar("Kind")


class Heard(list[What]):
    """A listener that records all `events`; as a list, it has their content without phases and reasons."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if not isinstance(event.what, Missing | PhaseStarted | Progress | PhaseEnded):
            self.append(event.what)

    def clear(self) -> None:
        super().clear()
        self.events.clear()

    @property
    def tell(self) -> Teller:
        return Teller(self)

    def of(self, kind: type[Kind]) -> list[Kind]:
        """The records of one kind."""
        return [event.what for event in self.events if isinstance(event.what, kind)]

    def at(self, kind: type[What]) -> list[Place]:
        """The places of the records of one kind."""
        return [event.place for event in self.events if isinstance(event.what, kind)]

    @property
    def printed(self) -> list[bytes]:
        """The output of all commands; for a hit the whole log, unless it was sent before."""
        said = [event.what for event in self.events]
        return [
            what.data if isinstance(what, Output) else what.log.read_bytes()
            for what in said
            if isinstance(what, Output) or (isinstance(what, Hit) and not what.told)
        ]


@dataclass
class FakeMachine:
    """The part of a machine that SSH sessions use; `port` is the port of a server that acts as the guest."""

    port: int
    shape: Shape
    accepts: bool = True
    stopped: str = ""

    def connected(self) -> bool:
        return self.accepts

    def linked(self, seconds: float) -> bool:
        return True

    def pause(self, seconds: float, *also: int) -> list[int]:
        if self.stopped:
            raise MachineError(self.stopped)
        # without output, the only event is that it stops, which has happened
        ready, _, _ = select.select(also, [], [], seconds if also else min(seconds, 0.05))
        return list(ready)

    def check(self) -> None:
        self.pause(0.0)

    def lost(self) -> MachineError:
        self.check()
        return MachineError("QEMU is gone")

    def error(self, message: str, *, hint: str = "") -> MachineError:
        return MachineError(message, hint=hint)


@contextmanager
def other_process(code: str) -> Iterator[subprocess.Popen[str]]:
    """Another Python process that runs `code`; killed at the end of the block, if it still runs."""
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        try:
            yield child
        finally:
            child.kill()
