"""The system calls that a step must not make, and those that do nothing in a step.

What is blocked is what docker's default profile blocks: https://docs.docker.com/engine/security/seccomp/
"""

from __future__ import annotations

import os

#: What only needs a capability that no step has is listed, too: two locks are better than one.
BLOCKED = (
    *("acct", "add_key", "bpf", "clock_adjtime", "clock_settime", "create_module", "delete_module"),
    *("finit_module", "fsconfig", "fsmount", "fsopen", "fspick", "get_kernel_syms", "init_module"),
    *("io_uring_enter", "io_uring_register", "io_uring_setup", "ioperm", "iopl", "kcmp", "kexec_file_load"),
    *("kexec_load", "keyctl", "lookup_dcookie", "mount", "mount_setattr", "move_mount", "nfsservctl"),
    *("open_by_handle_at", "open_tree", "perf_event_open", "pivot_root", "process_vm_readv"),
    *("process_vm_writev", "query_module", "quotactl", "reboot", "request_key", "setns", "settimeofday"),
    *("stime", "swapoff", "swapon", "sysfs", "_sysctl", "umount", "umount2", "unshare", "uselib"),
    *("userfaultfd", "ustat", "vm86", "vm86old"),
)

#: What flushes files to the disk: that is done once for the whole step, and its disk is thrown away if it fails.
FLUSHING = ("fdatasync", "fsync", "msync", "sync", "sync_file_range", "syncfs")

#: The flags of clone(2) for new namespaces: cgroup, ipc, mount, net, pid, user, uts.
_NAMESPACES = (0x02000000, 0x08000000, 0x00020000, 0x40000000, 0x20000000, 0x10000000, 0x04000000)

#: A second architecture that the same kernel runs.
_ARCHES = {
    "x86_64": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    "aarch64": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
    "s390x": ["SCMP_ARCH_S390X", "SCMP_ARCH_S390"],
}

_SUCCESS, _EPERM, _ENOSYS = 0, 1, 38


def profile() -> dict[str, object]:
    """The `linux.seccomp` of a container: OCI runtime specification 1.0."""
    machine = os.uname().machine
    place = 1 if machine == "s390x" else 0  # of the flags among clone's arguments
    return {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": _ARCHES.get(machine, []),
        "syscalls": [
            _refuse(BLOCKED, _EPERM),
            _refuse(FLUSHING, _SUCCESS),
            # Its flags are in memory, where no filter can look: programs fall back to clone.
            _refuse(("clone3",), _ENOSYS),
            *(
                _refuse(("clone",), _EPERM, {"index": place, "value": flag, "valueTwo": flag, "op": _MASKED})
                for flag in _NAMESPACES
            ),
        ],
    }


_MASKED = "SCMP_CMP_MASKED_EQ"


def _refuse(names: tuple[str, ...], errno: int, *args: dict[str, object]) -> dict[str, object]:
    return {"names": list(names), "action": "SCMP_ACT_ERRNO", "errnoRet": errno, "args": list(args)}
