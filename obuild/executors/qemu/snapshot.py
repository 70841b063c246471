"""A machine that outlasts a step: it pauses, its disk becomes a layer, and it continues, maybe in another process.

Its memory started as the file of a saved machine, or as zeros if it was booted. A step ends in three calls, so
that the caller can act between them: `freeze`, `seal`, `save`.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from obuild.errors import MachineError
from obuild.executors import overlay
from obuild.executors.qemu import machine
from obuild.executors.qemu import memory as ram
from obuild.executors.qemu.agent import Resident
from obuild.executors.qemu.argv import Links, Memory, qemu_argv
from obuild.executors.qemu.machine import Machine
from obuild.executors.qemu.shape import Shape
from obuild.guests.all import Home
from obuild.host import process, qemu_img, stamp
from obuild.host.process import CancelScope
from obuild.plan.keys import LayerId
from obuild.store.layers import Draft
from obuild.store.warm import State

#: How many bytes of a machine's memory may differ from the file that it started from. The difference is written at
#: each step and not shared. If it is larger, the whole memory is saved, and the next step resumes that.
HEAVY = 64 << 20

#: How long loading the state of the devices may take, in seconds: it is about 200 kB.
LOAD_TIMEOUT = 60.0


@dataclass
class Lasting:
    """One such machine. `file` is the initial content of its memory; `layer` is whose disk it has while frozen.

    `folder` belongs to this machine: its future disks are made there.
    """

    machine: Machine
    folder: Path
    file: Path | None
    shell: Resident = field(init=False)
    layer: LayerId | None = None
    heavy: bool = False
    saves: bool = True
    _disks: int = 0

    def __post_init__(self) -> None:
        self.shell = Resident(self.machine)

    def freeze(self) -> str:
        """End what the step left behind and freeze the guest's disks. Return "", or why a boot must come first."""
        if why := self.shell.freeze():
            return why
        self.machine.qmp.execute("stop")
        return ""

    def seal(self, draft: Draft) -> None:
        """Put a new disk on top of the draft's, whose image is then complete, and open only for reading."""
        self._disks += 1
        path = self._disk(self._disks)
        path.parent.mkdir(exist_ok=True)
        qemu_img.create_overlay(path, overlay.image_of(draft.id), size=qemu_img.virtual_size(draft.image))
        overlay.put(self.machine.qmp, path, self._disks)
        self._disk(self._disks - 1).unlink(missing_ok=True)  # the layer has it now, under its own name
        self.layer = draft.id

    def save(self, made: Path, boot_disk: Path | None = None) -> None:
        """Write the frozen machine to the new folder `made`. OSError if its memory cannot be read or written.

        `boot_disk` is its disk, if that is not a layer's image but an overlay with what booting has written.
        """
        made.mkdir()
        state = State(made)
        if boot_disk is not None:
            qemu_img.copy(boot_disk, state.disk)
        memory = ram.of(self.machine.child.pid, self.file, self.machine.shape.ram)
        runs = memory.changed()
        self.heavy = sum(pages for _, pages in runs) * ram.PAGE > HEAVY
        if self.heavy or self.file is None:
            memory.write_all(runs, self.file, state.ram)
        else:
            os.link(self.file, state.ram)
            memory.write_delta(runs, state.delta)
        self.machine.qmp.execute("xen-save-devices-state", {"filename": str(state.device), "live": False})

    def stands_on(self, draft: Draft) -> bool:
        """Return whether it can continue as the draft's machine: its disk is the parent's, as the draft has it."""
        return overlay.stands_on(draft, self.layer)

    def go_on(self, draft: Draft | None, *, network: bool) -> bool:
        """Let the guest run on the draft's image, or on its current one if there is no draft.

        Return False if the guest must boot to get this network.
        """
        if draft is not None:
            os.link(self._disk(self._disks), draft.image)
        self.layer = None
        self.machine.switch(network=network)
        self.machine.qmp.execute("cont")
        return self.shell.thaw(network=network, seed=secrets.token_hex(32) if draft is None else "")

    def _disk(self, number: int) -> Path:
        return self.folder / "disks" / f"{number}.qcow2"


@contextmanager
def resumed(state: State, shape: Shape, draft: Draft, folder: Path, scope: CancelScope) -> Iterator[Lasting]:
    """Resume a saved machine on the draft's image, still frozen. MachineError, OSError, ValueError on failure."""
    if state.disk.exists():
        draft.lay_copy(state.disk)
    else:
        draft.lay()
    file = folder / "ram"
    os.link(state.ram, file)  # the state may be removed while we run
    with machine.start(shape, draft.image, scope, network=False, memory=Memory(file)) as running:
        if state.delta.exists():
            ram.of(running.child.pid, file, shape.ram).apply(state.delta)
        _load(running, state.device)
        yield Lasting(running, folder, file)


def _load(machine: Machine, device: Path) -> None:
    """Have QEMU load the state of the devices."""
    machine.qmp.execute("migrate-set-capabilities", {"capabilities": [{"capability": "events", "state": True}]})
    machine.qmp.execute("migrate-incoming", {"uri": f"exec:exec cat {shlex.quote(str(device))}"})
    while event := machine.qmp.wait_event("MIGRATION", timeout=LOAD_TIMEOUT):
        match event["data"]["status"]:
            case "completed":
                return
            case "failed":
                break
    raise MachineError("QEMU does not accept the saved state of its devices")


def identity(shape: Shape, home: Home) -> str:
    """Return what a saved machine must share with a new one to be resumed: QEMU, its arguments, CPU and shell.

    The shell, because the one in a saved guest speaks the protocol of the obuild that started it.
    """
    memory = Memory(Path("ram"))
    argv = qemu_argv(shape, Path("image"), network=False, qmp="qmp", links=Links("", ""), memory=memory)
    binary = Path(process.require(str(argv[0]))).resolve()
    shell = hashlib.sha256(home.start("")).hexdigest()
    lines = [*map(str, argv), str(binary), str(stamp.of(binary)), shell]
    if shape.accel == "kvm":  # the guest knows the features of this CPU
        about = Path("/proc/cpuinfo").read_text(errors="replace").partition("\n\n")[0].splitlines()
        lines += [
            line for line in about if line.startswith(("vendor_id", "model", "stepping", "flags", "microcode"))
        ]
    return "\n".join(lines)
