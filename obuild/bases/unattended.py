"""Run a guest that does its work alone and powers off: what kinds share that make an image by booting one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from obuild.bases.kind import Making
from obuild.errors import MachineError
from obuild.executors.qemu import devices, kvm, machine, ssh
from obuild.executors.qemu.arches import ARCHES
from obuild.executors.qemu.machine import Machine
from obuild.executors.qemu.shape import Shape, require_host
from obuild.guests.profile import Card
from obuild.host import failpoints, process, qemu_img

#: What OVMF shows when it found nothing to boot; it waits there for ever.
_SHELL = "UEFI Interactive Shell"

#: How often the console is looked at for that, in seconds.
_LOOK = 5.0

#: How long a guest may take to answer SSH when it is tried, in seconds; it has first-boot work to do.
PROOF_TIME = 900.0

Ends = Literal["poweroff", "reboot"]
_REASONS: dict[Ends, str] = {"poweroff": "guest-shutdown", "reboot": "guest-reset"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why what a guest has done is a failure, "" if it is none, and what else to show of it."""

    problem: str
    lines: Sequence[str] = field(default=())


def _as_told(running: Machine, problem: str) -> Verdict:
    return Verdict(problem)


def check_host(card: Card) -> None:
    """UsageError for what is missing on this host; called before anything is downloaded."""
    require_host(Shape(arch=card.arch, firmware=card.firmware))
    process.require("qemu-img")


def shape_of(card: Card, making: Making, *, memory: int, boot_time: float) -> Shape:
    """The machine for a guest with this card; it gets `memory` bytes at least."""
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

    It may reboot `reboots` times before. In the first `press` seconds Enter is pressed once in each. `judge` gets
    the machine, and what was wrong with its end, or "".
    MachineError with the end of the console, and the path of a picture of the screen, unless all went well.
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


def prove_ssh(name: str, shape: Shape, disk: Path, making: Making, *, login: str, work: Path) -> None:
    """Boot what was made, and log in by SSH with the store's key. MachineError if that fails.

    The guest works on an overlay that is thrown away: the image stays as it is.
    """
    overlay = work / "proof.qcow2"
    qemu_img.create_overlay(overlay, disk.name)
    picture = making.store.screens / f"{name}.png"
    more = devices.screen(shape.arch)
    making.say(f"{name}: booting what was installed, to see that SSH answers")
    with machine.start(shape, overlay, making.scope, network=False, extra=more) as running:
        try:
            with ssh.connect(running, login=login, key=making.key):
                pass
        except MachineError as error:
            raise MachineError(
                f"{name}: what was installed cannot be logged in to: {error.message}{_pictured(running, picture)}",
                hint='does the installer give @public_key@ to that user? verify = "none" does not try',
            ) from error
    overlay.unlink()


def wait(running: Machine, timeout: float, ends: Ends, reboots: int = 0, press: int = 0) -> str:
    """What the guest has done instead of ending as it should, in words; "" if it has."""
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
    pictured = _pictured(running, picture)
    return MachineError("\n".join([f"{name}: {verdict.problem}", *verdict.lines, *said]) + pictured)


def _pictured(running: Machine, path: Path) -> str:
    """Where a picture of the screen is, as a line of a message; "" if there is none."""
    part = path.with_name(f"{path.name}.part")
    with suppress(MachineError, OSError):
        path.parent.mkdir(exist_ok=True)
        running.take_picture(part)
        part.replace(path)
        return f"\na picture of its screen: {path}"
    with suppress(OSError):
        part.unlink(missing_ok=True)
    return ""
