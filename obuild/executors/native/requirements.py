"""What native steps need of this host. Whatever is missing is named before anything is made."""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path

from obuild.errors import UsageError
from obuild.executors.native import namespace
from obuild.executors.native.namespace import Namespace
from obuild.host import process, program_version
from obuild.host.nbd import PROGRAM

INSTEAD = "--store=qemu:… runs steps in virtual machines, and needs none of this"

_PRIVILEGED = "in a container: --privileged"

_CAP_SYS_ADMIN = 21

_CGROUPS = Path("/sys/fs/cgroup")

#: What the kernel must offer, and the module that does.
_FUSE, _LOOP_CONTROL = Path("/dev/fuse"), Path("/dev/loop-control")
_MODULES = {_FUSE: "fuse", _LOOP_CONTROL: "loop"}

#: From linux/loop.h: the number of an unused loop device, which it makes if there is none.
_LOOP_CTL_GET_FREE = 0x4C82

#: Where the kernel lists the interpreters of foreign programs.
BINFMT = Path("/proc/sys/fs/binfmt_misc")

#: The container runtimes, the best first: crun takes half the CPU time of runc.
RUNTIMES = ("crun", "runc")

#: The oldest runc that reads our configuration: OCI runtime specification 1.0, with errnoRet for system calls.
_OLDEST_RUNC = (1, 0)


def see_host(memo: Path | None = None) -> str:
    """The container runtime. UsageError if we lack it, a right, a device or a program.

    Its version is kept in the file `memo`, if any.
    """
    _see_rights()
    _see_root()
    _see_cgroups()
    _see_device(_FUSE)
    _see_device(_LOOP_CONTROL)
    _see_loop_device()
    for program in (*namespace.PROGRAMS, PROGRAM, "qemu-img"):
        process.require(program)
    return find_runtime(memo)


def _see_rights() -> None:
    rights = int(Path("/proc/self/status").read_text().partition("CapEff:")[2].split()[0], 16)
    if os.geteuid() != 0:
        raise _refused("native steps mount file systems, which only root can: you are not root")
    if not rights >> _CAP_SYS_ADMIN & 1:
        raise _refused("native steps mount file systems: this root has no CAP_SYS_ADMIN", _PRIVILEGED)


def _see_root() -> None:
    try:
        whole = Namespace(os.getpid()).has_root()
    except OSError as error:
        raise _refused(f"no namespace can be entered here: {error.strerror}", _PRIVILEGED) from None
    if not whole:
        raise _refused("native steps do not work in a chroot", "podman run --privileged makes no chroot")


def _see_cgroups() -> None:
    """Version 2 alone has the controllers in one folder, version 1 has a folder for each."""
    place = _CGROUPS if (_CGROUPS / "cgroup.controllers").exists() else _CGROUPS / "memory"
    try:
        read_only = os.statvfs(place).f_flag & os.ST_RDONLY
    except OSError:
        raise _refused(f"native steps need cgroups, and {place} is missing") from None
    if read_only:
        raise _refused(f"native steps need cgroups, and {place} is read-only", _PRIVILEGED)


def _see_device(device: Path) -> None:
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        hint = f"modprobe {_MODULES[device]}; {_PRIVILEGED}, or --device={device}"
        raise _refused(f"native steps need {device}, which is missing", hint) from None
    except PermissionError as error:
        hint = f"{_PRIVILEGED}, or --device={device}"
        raise _refused(f"native steps need {device}, which cannot be opened: {error.strerror}", hint) from None
    except OSError as error:
        hint = f"modprobe {_MODULES[device]}"
        raise _refused(f"native steps need {device}, which does not work: {error.strerror}", hint) from None


def _see_loop_device() -> None:
    with _LOOP_CONTROL.open("rb") as control:
        try:
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
        except OSError as error:
            hint = "losetup -a shows what uses them, losetup -d frees one"
            raise _refused(f"no loop device is free: {error.strerror}", hint) from None
    device = Path(f"/dev/loop{number}")
    if not device.exists():
        # A container's /dev has only what was there when it began.
        raise _refused(f"native steps need {device}, which is missing", f"mknod -m 660 {device} b 7 {number}")


def find_runtime(memo: Path | None = None) -> str:
    """The first container runtime that is installed. UsageError if there is none, or if it is too old."""
    import shutil

    for runtime in RUNTIMES:
        if shutil.which(runtime):
            if runtime == "runc":
                _see_runc(program_version.told(runtime, memo=memo))
            return runtime
    return process.require(RUNTIMES[-1])


def _see_runc(told: str) -> None:
    """UsageError if this version, as runc tells it, is too old."""
    found = re.search(r"runc version ([0-9]+)\.([0-9]+)(\S*)", told)
    if found and (int(found[1]), int(found[2])) < _OLDEST_RUNC:
        version = ".".join(found.groups()[:2]) + found[3]
        raise _refused(f"runc {version} is too old: native steps need 1.0 or newer", "apt install runc")


def see_arch(arch: str) -> None:
    """UsageError if programs of a guest of this architecture do not run here."""
    if arch == os.uname().machine:
        return
    entry = BINFMT / f"qemu-{arch}"
    lines = entry.read_text().splitlines() if entry.exists() else []
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags:")), "")
    if "enabled" not in lines:
        raise _refused(f"programs for {arch} do not run on this host", "apt install qemu-user-static")
    if "F" not in flags:
        raise _refused(
            f"programs for {arch} run on this host, but not in containers: {entry} lacks the flag F",
            "apt install qemu-user-static",
        )


def _refused(what: str, hint: str = "") -> UsageError:
    return UsageError(what, hint=f"{hint}; {INSTEAD}" if hint else INSTEAD)
