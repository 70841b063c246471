"""The container that a command runs in: its description for runc, and its end.

https://github.com/opencontainers/runtime-spec 1.0
"""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from obuild.executors.native import seccomp
from obuild.executors.native.namespace import Namespace
from obuild.guests import linux
from obuild.host.process import Arg, terminal_name

#: The capabilities of root in a container of docker.
CAPABILITIES = tuple(
    f"CAP_{name}"
    for name in (
        *("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE"),
        *("NET_RAW", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
    )
)

#: How many processes a step can have, so that one that forks without end fails, and the host goes on.
MOST_PROCESSES = 16384

#: How much of the host's memory a step can have.
MEMORY_SHARE = 0.8

#: Where each container has a file system of its own, in memory. As after a boot, they are empty.
FRESH = ("/proc", "/sys", "/dev", "/run")

#: What docker hides from containers, and what it makes read-only.
_MASKED = (
    *("/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug"),
    *("/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/firmware"),
)
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

#: Where version 2 of cgroups is on a host that has both.
_UNIFIED = Path("/sys/fs/cgroup/unified")

_SAFE = ("nosuid", "noexec", "nodev")


class Bind(NamedTuple):
    """A file or folder of the host, and the resolved path where the container has it."""

    source: Path
    target: str
    options: tuple[str, ...] = ()


class Limits(NamedTuple):
    """What a step may use: `memory` in bytes."""

    memory: int
    processes: int = MOST_PROCESSES


def limits(memory: int) -> Limits:
    """The limits of a step. Without a size, most of the host's memory."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Limits(memory or int(whole * MEMORY_SHARE))


def describe(
    root: Path,
    argv: Sequence[str],
    binds: Sequence[Bind],
    *,
    name: str,
    hostname: str,
    network: bool,
    terminal: bool,
    limits: Limits,
) -> str:
    """The text of config.json. `root` is the folder of the guest's root."""
    namespaces = ["pid", "ipc", "uts", "mount", "cgroup"] + ([] if network else ["network"])
    about = {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": terminal,
            **({"consoleSize": _console()} if terminal else {}),
            "user": {"uid": 0, "gid": 0},
            "args": list(argv),
            "env": [f"PATH={linux.DEFAULT_PATH}", f"TERM={terminal_name()}"],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES),
            "rlimits": [{"type": "RLIMIT_NOFILE", **_files()}],
            "noNewPrivileges": False,
        },
        "root": {"path": str(root)},
        "hostname": hostname,
        "mounts": [*_system(), *map(_bind, binds)],
        "linux": {
            "namespaces": [{"type": kind} for kind in namespaces],
            "cgroupsPath": f"/{CGROUPS}/{name}",
            "resources": {
                "devices": [{"allow": False, "access": "rwm"}],
                "memory": {"limit": limits.memory},
                "pids": {"limit": limits.processes},
            },
            "seccomp": seccomp.profile(),
            "maskedPaths": _MASKED,
            "readonlyPaths": _READ_ONLY,
        },
    }
    return json.dumps(about)


def _console() -> dict[str, int]:
    """The size of our own terminal: crun gives a container's none else."""
    columns, lines = os.get_terminal_size(0)
    return {"height": lines, "width": columns}


def _files() -> dict[str, int]:
    """How many files a process can have open: as on any Debian, if we may say so."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    return {"soft": min(1024, most), "hard": min(524288, most)}


def _system() -> list[dict[str, object]]:
    """What every Linux has mounted."""
    return [
        _mount("/proc", "proc", "proc"),
        _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"),
        _mount("/dev/shm", "tmpfs", "shm", *_SAFE, "mode=1777"),
        _mount("/dev/mqueue", "mqueue", "mqueue", *_SAFE),
        _mount("/sys", "sysfs", "sysfs", *_SAFE, "ro"),
        _mount("/run", "tmpfs", "run", "nosuid", "nodev", "mode=755"),
        _mount("/run/lock", "tmpfs", "lock", *_SAFE, "mode=1777"),
    ]


def _mount(target: str, kind: str, source: str, *options: str) -> dict[str, object]:
    return {"destination": target, "type": kind, "source": source, "options": list(options)}


def _bind(bind: Bind) -> dict[str, object]:
    return _mount(bind.target, "bind", str(bind.source), "bind", "nodev", "nosuid", *bind.options)


def prepare(namespace: Namespace, runtime: str) -> None:
    """Let a runtime work in the namespace.

    crun refuses a host with both versions of cgroups, although version 1 has all that it needs there.
    """
    if runtime == "crun":
        with suppress(OSError):  # the host has one version
            namespace.unmount(_UNIFIED)


def command(runtime: str, state: Path, bundle: Path, name: str) -> list[Arg]:
    """The command line that runs a container to its end. `state` is the folder of the runtime's own files."""
    return [runtime, "--root", state, "run", "--bundle", bundle, name]


#: The cgroup of all containers of obuild.
CGROUPS = "obuild"


def name_of(owner: int, number: int) -> str:
    """The name of a container and its cgroup; `owner` is the process that ends with the chain."""
    return f"{owner}-{number}"


def sweep() -> None:
    """Remove the cgroups of containers whose build was killed. The kernel removes only empty ones."""
    top = Path("/sys/fs/cgroup")
    # Version 2 has one tree, version 1 one for each controller.
    for pattern in (f"{CGROUPS}/*/", f"*/{CGROUPS}/*/"):
        for group in top.glob(pattern):
            # That of another build may be empty because its container is just being made.
            if not Path(f"/proc/{group.name.partition('-')[0]}").exists():
                with suppress(OSError):
                    group.rmdir()
