"""A root shell that stays in a Linux guest: it runs what comes through a virtio port, and survives being saved.

So a step in a machine that runs on, or that was resumed, needs no login: the port is there at once, whatever
happened to the network meanwhile. The shell is started over SSH when the guest has booted. `obuild.resident` talks
to it.

A request is a line `KIND SIZE MARK` and a script of SIZE bytes, or, if SIZE is `-`, a line with a short script in
the escapes of printf's %b, which needs no program to be read: where all is emulated, starting one takes its time.
The answer is what the script prints, then a line `MARK STATUS`. The kinds:

    step    in a cgroup of its own, in which its processes are found again
    check   as root, with nothing on stdin
    stream  the same, with the data port's pieces on stdin, each behind a line with its size; 0 ends them
    fetch   the same, with stdout to the data port, where `MARK` ends it
    freeze  no script: end what a step has left behind, freeze the disks, and wait

To `freeze`, the shell answers with a line `MARK frozen`, and then waits for a line
`TIME SEED NETWORK TOKEN`: it makes random numbers anew from SEED (`-` if it was not resumed), sets the clock to
TIME, in seconds since the epoch, thaws the disks, does what a boot would do, sees to it that the guest knows its
network as `open` or `closed`, and answers with TOKEN in place of MARK; the status is 1 if it has to boot to know
that network. Or it answers with `MARK boot WHY`; the disks are not frozen then.

The first `freeze` takes down how all is; each further one compares, and a difference that cannot be put right is a
reason to boot. What is compared, resident/look.sh says.

Needed in the guest: virtio_console, cgroups (version 2), fanotify, coreutils or busybox, and a kernel of 5.14.
"""

from __future__ import annotations

import struct
from pathlib import Path

from obuild.guests.posix import say_status, script

#: What is sent into guests: shell scripts, and a program.
_HERE = Path(__file__).parent / "resident"

#: What the guest sees of the two ports, in /dev/virtio-ports/.
CONTROL_PORT, DATA_PORT = "obuild", "obuild-data"

#: Where the shell has its files: in a tmpfs.
FOLDER = "/run/obuild"

#: What a boot reads. If it changes, the guest is booted before the next step, for that could matter to it.
#: Files that packages bring come and go by renames, so of their folders only the last change is looked at; what
#: people edit, is looked at by itself.
BOOT = (
    "/boot /boot/* /lib/modules /lib/modules/* /usr/lib/modules-load.d /usr/lib/sysctl.d /usr/lib/sysusers.d "
    "/usr/lib/tmpfiles.d /lib/systemd /lib/systemd/systemd /lib/systemd/system /lib/systemd/system/*.wants "
    "/usr/lib/systemd/system /lib/udev/rules.d /usr/lib/udev/rules.d /usr/lib/environment.d /sbin/init "
    "/etc/fstab /etc/crypttab /etc/hostname /etc/inittab /etc/rc* /etc/rc*/* /etc/init.d /etc/init.d/* "
    "/etc/conf.d /etc/conf.d/* /etc/modules /etc/sysctl.conf /etc/default /etc/default/* /etc/environment "
    "/etc/pam.d /etc/pam.d/* /etc/netplan /etc/netplan/* /etc/ssh /etc/ssh/*"
)
BOOT_TREES = (
    "/etc/systemd /etc/udev /etc/modules-load.d /etc/modprobe.d /etc/sysctl.d /etc/tmpfiles.d /etc/runlevels "
    "/etc/network /etc/NetworkManager /etc/sysconfig /etc/security /etc/selinux"
)

#: In tmpfs mounts, what services keep there for themselves: nothing of it is looked at.
KEPT = "systemd udev user dbus sudo obuild log credentials"

#: Who makes this file asks for a boot before the next step, as Debian's packages do.
REBOOT = "/run/reboot-required"

#: How many seconds a step's left-over processes have to end by themselves when they are asked to.
GRACE = 5


#: The exit status that says that a guest lacks something.
LACKING = 3


def start(mark: str) -> bytes:
    """Start the shell, once what else is starting has started; then print `mark STATUS` and a newline.

    If the guest lacks what it needs, the status is LACKING, and before it stands, in a few words, what.
    """
    given = {
        "dir": FOLDER,
        "lacking": LACKING,
        "control_name": CONTROL_PORT,
        "data_name": DATA_PORT,
        "fifreeze": 0xC0045877,
        "fithaw": 0xC0045878,
        "reseed": 0x5207,  # RNDRESEEDCRNG
        "grace": GRACE,
        "kept": KEPT,
        "reboot": REBOOT,
        "boot": f"{BOOT} {' '.join(f'{name} {name}/* {name}/*/* {name}/*/*/*' for name in BOOT_TREES.split())}",
    }
    names = "\n".join(f"{name}='{value}'" for name, value in given.items())
    program = "".join(f"\\0{byte:03o}" for byte in _program())
    lines = [
        "(",
        names,
        f"program='{program}'",
        _source("start.sh"),
        *("cat >>$dir/settings <<'END'", names, "END"),
        *(f"cat >$dir/{part} <<'END'\n{_source(f'{part}.sh')}END" for part in ("look", "library")),
        f"cat >$dir/shell <<'END'\ndir='{FOLDER}'\n{_source('shell.sh')}END",
        "setsid $dir/tool w $dir/shell </dev/null >/dev/null 2>&1 &",
        ") 2>&1",
        say_status(mark, "$?"),
    ]
    return script(lines)


def _source(name: str) -> str:
    return (_HERE / name).read_text(encoding="ascii")


def _program() -> bytes:
    """The program that amd64.S is the source of, as a file for x86_64. Format: elf(5)."""
    start, head = 0x400000, 64 + 56
    code = (_HERE / "amd64.bin").read_bytes()
    size = head + len(code)
    elf = struct.pack(
        "<16sHHIQQQIHHHHHH",
        *(b"\x7fELF\x02\x01\x01", 2, 62, 1, start + head, 64, 0, 0, 64, 56, 1, 0, 0, 0),
    )
    return elf + struct.pack("<IIQQQQQQ", 1, 5, 0, start, start, size, size, 0x1000) + code
