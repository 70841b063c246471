"""A resident root shell in a Linux guest. It runs scripts from a virtio port, and survives saving and resuming.

So a step in a machine that keeps running, or that was resumed, needs no login: the port works at once, whatever
has happened to the network. The shell is started over SSH when the guest has booted.
`executors.qemu.agent` talks to it.

A request is a line `KIND SIZE MARK` and a script of SIZE bytes; or, if SIZE is `-`, a line with a short script in
the escapes of printf's %b, which takes no program to read: starting one is slow in an emulated guest.
The answer is the output of the script, then a line `MARK STATUS`. The kinds:

    step    in a cgroup of its own, so that its processes can be found later
    check   as root, with nothing on stdin
    stream  the same, with the pieces from the data port on stdin; a line with its size is before each, 0 ends them
    fetch   the same, with stdout to the data port, where `MARK` ends it
    freeze  no script: end what a step has left running, freeze the disks, and wait

The shell answers `freeze` with a line `MARK frozen`, and then waits for a line `TIME SEED NETWORK TOKEN`. It
reseeds the random number generator from SEED (`-` if it was not resumed), sets the clock to TIME, in seconds since
the epoch, thaws the disks, does what a boot would do, configures the network as `open` or `closed`, and answers
with TOKEN in place of MARK; the status is 1 if that network takes a boot. Or it answers `freeze` with
`MARK boot WHY`; the disks are then not frozen.

The first `freeze` records the state of the guest. Each later one compares, and a difference that cannot be undone
is a reason to boot. resident/look.sh says what is compared.

The guest needs virtio_console, cgroups (version 2), fanotify, coreutils or busybox, and Linux 5.14 or later.
"""

from __future__ import annotations

import struct

from obuild.guests.posix import RESIDENT, resident, say_status, script

#: The names of the two ports in the guest, in /dev/virtio-ports/.
CONTROL_PORT, DATA_PORT = "obuild", "obuild-data"

#: The folder of the shell's files, a tmpfs.
FOLDER = "/run/obuild"

#: What a boot reads. If it changes, the guest is booted before the next step, which could depend on it.
#: Packages create and remove files by renames, so of their folders only the last change is compared. Files that
#: people edit are compared themselves.
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

#: The folders in tmpfs mounts that belong to services: nothing in them is compared.
KEPT = "systemd udev user dbus sudo obuild log credentials"

#: If this file exists, a boot is wanted before the next step; Debian's packages create it.
REBOOT = "/run/reboot-required"

#: How long a step's remaining processes have to end after SIGTERM, in seconds.
GRACE = 5


#: The exit status for a guest that lacks something.
LACKING = 3


def start(mark: str) -> bytes:
    """Start the shell once the boot is complete; then print `mark STATUS` and a newline.

    If the guest lacks something, the status is LACKING, and the output before it says in a few words what.
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
        resident("disks.sh"),
        resident("start.sh"),
        *("cat >>$dir/settings <<'END'", names, "END"),
        *(f"cat >$dir/{part} <<'END'\n{resident(f'{part}.sh')}END" for part in ("look", "library")),
        f"cat >$dir/shell <<'END'\ndir='{FOLDER}'\n{resident('shell.sh')}END",
        "setsid $dir/tool w $dir/shell </dev/null >/dev/null 2>&1 &",
        ") 2>&1",
        say_status(mark, "$?"),
    ]
    return script(lines)


def _program() -> bytes:
    """The program whose source is amd64.S, as an executable for x86_64. Format: elf(5)."""
    start, head = 0x400000, 64 + 56
    code = (RESIDENT / "amd64.bin").read_bytes()
    size = head + len(code)
    elf = struct.pack(
        "<16sHHIQQQIHHHHHH",
        *(b"\x7fELF\x02\x01\x01", 2, 62, 1, start + head, 64, 0, 0, 64, 56, 1, 0, 0, 0),
    )
    return elf + struct.pack("<IIQQQQQQ", 1, 5, 0, start, start, size, size, 0x1000) + code
