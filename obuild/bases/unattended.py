"""Run a guest that works by itself and powers off: shared by the kinds that make an image by booting a guest."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from obuild.bases.kind import Making
from obuild.bases.remote import Remote
from obuild.errors import MachineError, UsageError
from obuild.executors.qemu import devices, kvm, machine
from obuild.executors.qemu.arches import ARCHES
from obuild.executors.qemu.machine import Machine
from obuild.executors.qemu.shape import Nvram, Shape, require_host
from obuild.guests.profile import Card
from obuild.host import failpoints, process, qemu_img
from obuild.host.fs import fsync

#: OVMF shows this when it finds nothing to boot; it then waits forever.
_SHELL = "UEFI Interactive Shell"

#: How often to look for it on the console, in seconds.
_LOOK = 5.0

Ends = Literal["poweroff", "reboot"]
_REASONS: dict[Ends, str] = {"poweroff": "guest-shutdown", "reboot": "guest-reset"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a guest has failed ("" if it has not), and more lines to show."""

    problem: str
    lines: Sequence[str] = field(default=())


def _as_told(running: Machine, problem: str) -> Verdict:
    return Verdict(problem)


def check_host(card: Card, *, tpm: bool = False) -> None:
    """UsageError, naming the package, if this host lacks a program or a file. Call it before any download."""
    shape = Shape(arch=card.arch, firmware=card.firmware, nvram=Nvram(Path()), tpm=Path() if tpm else None)
    require_host(shape)
    process.require("qemu-img")


def fetched(wanted: Remote, path: Path, making: Making) -> Path:
    """Fetch a file that a recipe names and link it to `path`, so that a concurrent `prune` cannot take it away.

    One whose address ends in .xz is unpacked; UsageError if it cannot be.
    """
    path.hardlink_to(making.fetch(wanted))
    return _unpacked(path, wanted.urls[0]) if wanted.urls[0].endswith(".xz") else path


def _unpacked(packed: Path, url: str) -> Path:
    import lzma  # late: few images are packed

    path = packed.with_name(f"{packed.name}.unpacked")
    try:
        with lzma.open(packed) as source, path.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    except (lzma.LZMAError, EOFError) as error:
        raise UsageError(f"{url} is not an xz file: {error}") from error
    return path


def pack(name: str, disk: Path, out: Path, making: Making) -> None:
    """Write a stand-alone copy of `disk` to `out`, which appears complete or not at all."""
    making.say(f"{name}: packing the image")
    packed = disk.with_name("packed.qcow2")
    qemu_img.flat_copy(disk, packed)
    fsync(packed)
    packed.replace(out)


def shape_of(card: Card, making: Making, *, memory: int, boot_time: float) -> Shape:
    """Return the machine for a guest with this card, with at least `memory` bytes."""
    return Shape(
        arch=card.arch,
        accel=kvm.choose("auto", card.arch, memo=making.store.state / "accel.json", note=making.say),
        memory=max(memory, card.memory),
        firmware=card.firmware,
        boot_time=boot_time,
    )


def run(
    name: str,
    shape: Shape,
    disk: Path,
    making: Making,
    *,
    extra: Sequence[str | Path],
    timeout: float,
    ends: Ends = "poweroff",
    reboots: int = 0,
    press: int = 0,
    screen: bool = False,
    judge: Callable[[Machine, str], Verdict] = _as_told,
) -> None:
    """Boot a guest on `disk` and wait at most `timeout` seconds until it `ends` by itself.

    It may reboot `reboots` times before. Enter is pressed once a second for `press` seconds. `judge` gets the
    machine, and why it ended wrongly or "", and decides whether the guest has failed. MachineError if it has, with
    the end of the console and the path of a picture of the screen.
    """
    arch = shape.arch
    more = [*extra, *(devices.screen(arch) if screen or making.watch else ())]
    more += devices.watched() if making.watch else []
    more += devices.REBOOTS if reboots else ()
    picture = making.store.screens / f"{name}.png"
    picture.unlink(missing_ok=True)
    with machine.start(shape, disk, making.scope, network=True, extra=more) as running:
        failpoints.reach("machine.started")
        if making.watch:
            making.say(f"{name}: watch the guest's screen at vnc://127.0.0.1:{running.vnc_port()}")
        verdict = judge(running, wait(running, timeout, ends, reboots, press))
        if verdict.problem:
            raise _failure(name, verdict, running, picture)
        running.quit()


def wait(running: Machine, timeout: float, ends: Ends, reboots: int = 0, press: int = 0) -> str:
    """Wait for the end of a guest. Return why it did not end as it should, or "" if it did."""
    deadline = time.monotonic() + timeout
    uefi = running.shape.firmware == "uefi" or bool(ARCHES[running.shape.arch].firmware)
    while (left := deadline - time.monotonic()) > 0:
        reason = running.ended(1.0 if press > 0 else min(left, _LOOK) if uefi else left)
        if press > 0:
            running.press("ret")
            press -= 1
        if reason is None:
            if uefi and _SHELL in running.console():
                return "UEFI found nothing that it could boot"
        elif reason == "reset":
            reboots -= 1
            if reboots < 0:
                return "the guest reboots again and again"
        elif reason == _REASONS[ends]:
            return ""
        else:
            did = machine.what_it_did(reason)
            return f"the guest {did} instead of {'powering off' if ends == 'poweroff' else 'rebooting'}"
    return f"the guest has not {'powered off' if ends == 'poweroff' else 'rebooted'} after {timeout:g} s"


def _failure(name: str, verdict: Verdict, running: Machine, picture: Path) -> MachineError:
    console = running.console()
    said = ["its console ends with:", console] if console else ["its serial console is empty"]
    text = "\n".join([f"{name}: {verdict.problem}", *verdict.lines, *said])
    return MachineError(text + pictured(running, picture))


def pictured(running: Machine, path: Path) -> str:
    """Take a picture of the screen. Return a line for a message that says where it is, or "" if that failed."""
    part = path.with_name(f"{path.name}.part")
    with suppress(MachineError, OSError):
        path.parent.mkdir(exist_ok=True)
        running.take_picture(part)
        part.replace(path)
        return f"\na picture of its screen: {path}"
    with suppress(OSError):
        part.unlink(missing_ok=True)
    return ""
