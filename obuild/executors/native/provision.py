"""Native steps as an executor: whether this host can run them on a base, and what runs them."""

from __future__ import annotations

import os
import shutil
from contextlib import AbstractContextManager, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from obuild.errors import UsageError
from obuild.executors.settings import Settings
from obuild.guests.profile import Card
from obuild.host import process

if TYPE_CHECKING:  # late: a cached build needs no executor
    from obuild.executors.native.chain import Chain, Config
    from obuild.executors.protocol import OpenExecutor, Setup

_INSTEAD = "--store=qemu:… runs steps in virtual machines, and needs none of this"

_CAP_SYS_ADMIN = 21

#: What the kernel must offer, and the module that does.
_DEVICES = {"/dev/fuse": "fuse", "/dev/loop-control": "loop"}

#: qemu-user's names of architectures, as in its entries of binfmt_misc.
_BINFMT = Path("/proc/sys/fs/binfmt_misc")


def check(settings: Settings, card: Card) -> None:
    """UsageError if steps on a base with this card cannot be native."""
    os_name = settings.os or card.os
    if os_name != "linux":
        raise UsageError(f"native steps run on Linux only, and this base is {os_name}", hint=_INSTEAD)


def provision(setup: Setup) -> OpenExecutor:
    """Return what opens the executor for one chain of steps. UsageError if this host cannot run them."""
    from obuild.executors.native import namespace
    from obuild.executors.native.chain import Config
    from obuild.executors.native.container import limits
    from obuild.host.nbd import PROGRAM

    _see_rights()
    for program in (*namespace.PROGRAMS, PROGRAM, "qemu-img"):
        process.require(program)
    runtime = find_runtime()
    _see_arch(setup.settings.arch or setup.base.card.arch)
    return partial(_chain, Config(setup.store, runtime, limits(setup.settings.memory), setup.scope))


def _chain(config: Config) -> AbstractContextManager[Chain]:
    from obuild.executors.native.chain import Chain

    return closing(Chain(config))


def _see_rights() -> None:
    rights = int(Path("/proc/self/status").read_text().partition("CapEff:")[2].split()[0], 16)
    if os.geteuid() != 0 or not rights >> _CAP_SYS_ADMIN & 1:
        raise UsageError(f"native steps mount file systems, which only root can: {_who()}", hint=_INSTEAD)
    for device, module in _DEVICES.items():
        if not Path(device).exists():
            hint = f"modprobe {module}, or in a container: --privileged, or --device={device}. {_INSTEAD}"
            raise UsageError(f"native steps need {device}, which is missing", hint=hint)


def _who() -> str:
    return "you are not root" if os.geteuid() != 0 else "this root has no CAP_SYS_ADMIN"


def find_runtime() -> str:
    """The container runtime. UsageError if there is none."""
    from obuild.executors.native.container import RUNTIMES

    found = next((name for name in RUNTIMES if shutil.which(name)), None)
    return found or process.require(RUNTIMES[0])


def _see_arch(arch: str) -> None:
    """UsageError if programs of a guest of this architecture do not run here."""
    if arch == os.uname().machine:
        return
    entry = _BINFMT / f"qemu-{arch}"
    lines = entry.read_text().splitlines() if entry.exists() else []
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags:")), "")
    if "enabled" not in lines or "F" not in flags:
        raise UsageError(
            f"programs for {arch} do not run on this host, so steps cannot be native",
            hint=f"apt install qemu-user-static; {_INSTEAD}",
        )
