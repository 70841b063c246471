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
TIME, in seconds since the epoch (`-` if it is right), thaws the disks, does what a boot would do, sees to it that
the guest knows its network as `open` or `closed`, and answers with TOKEN in place of MARK; the status is 1 if it
has to boot to know that network. Or it answers with `MARK boot WHY`; the disks are not frozen then.

Needed in the guest: virtio_console, cgroups (version 2), coreutils or busybox, and a kernel of 5.14.
"""

from __future__ import annotations

import struct

from obuild.posix import say_status, script
from obuild.shape import CONTROL_PORT, DATA_PORT

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
    text = _START
    for name, value in {
        "LIBRARY": _LIBRARY,
        "SHELL": _SHELL,
        "FOLDER": FOLDER,
        "CONTROL": CONTROL_PORT,
        "DATA": DATA_PORT,
        "KEPT": KEPT,
        "REBOOT": REBOOT,
        "LACKING": str(LACKING),
        "PROGRAM": "".join(f"\\0{byte:03o}" for byte in _program()),
        "FIFREEZE": str(0xC0045877),
        "FITHAW": str(0xC0045878),
        "RNDRESEEDCRNG": str(0x5207),
        "TRIES": str(GRACE * 20),
        "BOOT": f"{BOOT} {' '.join(f'{name} {name}/* {name}/*/* {name}/*/*/*' for name in BOOT_TREES.split())}",
    }.items():
        text = text.replace(f"@{name}@", value)
    return script(["(", text, ") 2>&1", say_status(mark, "$?")])


def _program() -> bytes:
    """A program for x86_64 that calls ioctl(2): `ioctl PATH NUMBER`, with 0 as the argument.

    It freezes and thaws, as fsfreeze would, and starts in a fifth of the time, for it needs no library. And it has
    the kernel use at once what was written to /dev/urandom, which no tool that every guest has does: else machines
    that were resumed from one state have the same random numbers for a minute. (The kernel's own way, a device
    that says that the machine is another one, comes too late for the first command.) Format: elf(5).
    """
    start, head = 0x400000, 64 + 56
    code = bytes.fromhex(
        "488b7c2410 31f6 b802000000 0f05"  # open(argv[1], O_RDONLY)
        "89c7 488b4c2418 31f6"  # edi: what it gave; rcx: argv[2]; esi: 0
        "0fb601 83e830 780a 6bf60a 01c6 48ffc1 ebee"  # esi: the number that the digits at rcx say
        "31d2 b810000000 0f05"  # ioctl(edi, esi, 0)
        "f7d8 89c7 b83c000000 0f05"  # exit(-result)
    )
    size = head + len(code)
    elf = struct.pack(
        "<16sHHIQQQIHHHHHH",
        *(b"\x7fELF\x02\x01\x01", 2, 62, 1, start + head, 64, 0, 0, 64, 56, 1, 0, 0, 0),
    )
    return elf + struct.pack("<IIQQQQQQ", 1, 5, 0, start, start, size, size, 0x1000) + code


_LIBRARY = r"""
# All that a boot would put right, as one text. Names are listed by the shell, for starting a program takes longer.
settings() {
    cat /proc/self/mountinfo /proc/swaps /proc/net/route /proc/sys/kernel/hostname
    for service in /sys/fs/cgroup/system.slice/*/; do echo "$service"; done
    stat -c '%n %z' $boot
}
left_over() { find $volatile -xdev $skipped -print; }
look() {
    seen=$(settings)
    for folder in $volatile; do
        set -- $folder/* $folder/.[!.]* $folder/*/*
        seen="$seen $*"
    done
} 2>/dev/null

same() {
    look
    [ "$seen" = "$quick" ] && return
    { settings; left_over; } >$dir/now
    cmp -s $dir/now $dir/before && quick=$seen
} 2>/dev/null

end_step() {
    for session in /sys/fs/cgroup/user.slice/*/session-*.scope; do
        [ -e "$session" ] && echo 1 >"$session/cgroup.kill"
    done
    read -r pid <$step/cgroup.procs || return 0
    kill -TERM $(cat $step/cgroup.procs)
    tries=@TRIES@
    while read -r pid <$step/cgroup.procs && [ $tries -gt 0 ]; do
        sleep 0.05
        tries=$((tries - 1))
    done
    echo 1 >$step/cgroup.kill
    while read -r pid <$step/cgroup.procs; do sleep 0.02; done
} 2>/dev/null

# The lines of one file that another has not.
only_in() { grep -vxF -f "$2" "$1"; }

changes() {
    only_in $dir/now $dir/before
    only_in $dir/before $dir/now
}

# Undo what the step has mounted, and what it has left in memory.
clean() {
    only_in $dir/now $dir/before >$dir/new
    # the last mounted first; a space is \040 there
    sed -n 's/^[0-9]* [0-9]* [0-9]*:[0-9]* [^ ]* \([^ ]*\) .*/\1/p' $dir/new | sed '1!G;h;$!d' |
        while read -r mount; do umount -l "$(printf '%b' "$mount")"; done
    while IFS= read -r line; do
        for folder in $volatile; do
            case $line in "$folder"/*) rm -rf -- "$line" ;; esac
        done
    done <$dir/new
} 2>/dev/null

freeze() {
    frozen=
    for mount in $disks; do
        if $ioctl "$mount" @FIFREEZE@ || mount -o remount,ro "$mount"; then
            frozen="$mount $frozen"
        else
            thaw
            return 1
        fi
    done
} 2>/dev/null

thaw() {
    for mount in $frozen; do $ioctl "$mount" @FITHAW@ || mount -o remount,rw "$mount"; done
} 2>/dev/null

# QEMU's DHCP names a gateway and a name server where the network is open, and a guest boots where it is closed.
open_network() {
    card= gateway=
    while read -r name to via rest; do
        case $to in 00000000) gateway=$name ;; 0002000A) card=$name ;; esac
    done </proc/net/route
    [ -z "$gateway" ] || return 0
    [ -n "$card" ] || return 1
    ip route add default via 10.0.2.2 dev $card || route add default gw 10.0.2.2 $card || return 1
    opened=$card
    while read -r word server; do
        case $word,$server in
        nameserver,127.0.0.53) resolvectl dns $card 10.0.2.3; return ;;
        nameserver,*) return 0 ;;
        esac
    done </etc/resolv.conf
    return 1
} 2>/dev/null

close_network() {
    [ -n "$opened" ] || return 0
    ip route del default via 10.0.2.2 dev $opened || route del default gw 10.0.2.2 $opened
    resolvectl revert $opened
    opened=
} 2>/dev/null

tmp_is_as_it_was() {
    set -- /tmp/* /tmp/.[!.]*
    [ "$*" = "$tmp" ]
}

freeze_until_told() {
    why=
    end_step
    close_network
    if [ -e @REBOOT@ ]; then
        why='there is a file @REBOOT@'
    elif [ "$clears_tmp" = boot ] && ! tmp_is_as_it_was; then
        why='a boot clears /tmp'
    elif ! same && ! { clean; same; }; then
        why="what a boot sets up has changed: $(changes | sed q)"
    elif ! freeze; then
        why='a file system cannot be frozen'
    fi
    if [ -n "$why" ]; then
        printf '%s boot %s\n' "$mark" "$why" >&4
        return
    fi
    printf '%s frozen\n' "$mark" >&4
    read -r now seed network mark <&3
    if [ "$seed" != - ]; then
        printf '%s' "$seed" >/dev/urandom
        $ioctl /dev/urandom @RNDRESEEDCRNG@
    fi
    [ "$now" = - ] || date -s "@$now" >/dev/null 2>&1 || date -s "@${now%.*}" >/dev/null 2>&1
    thaw
    if [ "$clears_tmp" = systemd ] && ! tmp_is_as_it_was; then
        systemd-tmpfiles --create --remove --boot --exclude-prefix=/dev >/dev/null 2>&1
    fi
    [ "$network" = closed ] || open_network
}
"""

_SHELL = r"""
dir=@FOLDER@
. $dir/settings
. $dir/library

# What was sent through the data port, as it was before it was cut into pieces.
pieces() {
    while read -r size <&5 && [ "$size" -gt 0 ]; do dd bs="$size" count=1 iflag=fullblock <&5 2>/dev/null; done
}

echo $$ >$group/shell/cgroup.procs
exec 3<>$control 5<>$data
mkfifo $dir/out
# a step's own user may open /dev/stdout
chmod 622 $dir/out
exec 4<>$dir/out
cat <&4 >&3 3>&- 4>&- 5>&- &
cd /
opened=
set -- /tmp/* /tmp/.[!.]*
tmp=$*
look
quick=$seen
{ settings; left_over; } >$dir/before 2>/dev/null
while read -r kind size mark <&3; do
    case $size in
    0) ;;
    -)
        IFS= read -r line <&3
        printf '%b' "$line" >$dir/script
        ;;
    *) dd bs="$size" count=1 iflag=fullblock <&3 >$dir/script 2>/dev/null ;;
    esac
    case $kind in
    step) (echo 0 >$step/cgroup.procs && . $dir/script) </dev/null >&4 2>&1 3>&- 4>&- 5>&- ;;
    check) (. $dir/script) </dev/null >&4 2>&1 3>&- 4>&- 5>&- ;;
    stream)
        pieces | {
            (. $dir/script) >&4 2>&1 3>&- 4>&- 5>&-
            status=$?
            cat >/dev/null
            exit $status
        }
        ;;
    fetch)
        (. $dir/script) </dev/null >&5 2>&4 3>&- 4>&- 5>&-
        status=$?
        printf '%s 0\n' "$mark" >&5
        (exit $status)
        ;;
    freeze) freeze_until_told ;;
    esac
    printf '%s %d\n' "$mark" $? >&4
done
"""

_START = r"""
dir=@FOLDER@
lacks() { echo "$1"; exit @LACKING@; }
for tool in cat chmod cmp date dd find grep mkfifo mount rm sed setsid sleep stat umount; do
    command -v $tool >/dev/null || lacks "it has no $tool"
done

# What is still starting would look like something that a step has started.
[ ! -d /run/systemd/system ] || timeout 120 systemctl is-system-running --wait >/dev/null 2>&1

modprobe virtio_console 2>/dev/null
tries=200
while :; do
    control= data=
    for port in /sys/class/virtio-ports/*; do
        [ -e $port/name ] && read -r name <$port/name || continue
        case $name in @CONTROL@) control=/dev/${port##*/} ;; @DATA@) data=/dev/${port##*/} ;; esac
    done
    [ -c "$control" ] && [ -c "$data" ] && break
    tries=$((tries - 1))
    [ $tries -gt 0 ] || lacks "its kernel has no virtio_console"
    sleep 0.05
done

mkdir -p $dir && mount -t tmpfs -o mode=700 obuild $dir || lacks "it cannot mount a tmpfs"
group=/sys/fs/cgroup
if [ ! -e $group/cgroup.controllers ]; then
    group=$dir/cgroup
    mkdir $group && mount -t cgroup2 obuild $group 2>/dev/null || lacks "it has no cgroups of version 2"
fi
group=$group/obuild
mkdir -p $group/shell $group/step
[ -e $group/step/cgroup.kill ] || lacks "its kernel is older than 5.14"

disks= devices= volatile=
while read -r id parent device root mount options rest; do
    type=${rest#*- }
    type=${type%% *}
    case $type in
    tmpfs | ramfs) case $mount in /sys/* | $dir | /run/* | *\\*) ;; *) volatile="$volatile $mount" ;; esac ;;
    esac
    # the innermost is frozen first; a disk that is mounted twice, once
    case " $rest" in *" - "*" /dev/"*) ;; *) continue ;; esac
    case "$options" in ro | ro,*) continue ;; esac
    case " $devices " in *" $device "*) continue ;; esac
    devices="$devices $device" disks="$mount $disks"
done </proc/self/mountinfo
[ -n "$disks" ] || lacks "it has no disk to freeze"
skipped=
for folder in $volatile; do
    for kept in @KEPT@; do skipped="$skipped -path $folder/$kept -prune -o"; done
done
clears_tmp=
case " $volatile " in
*" /tmp "*) ;;
*)
    if [ -d /run/systemd/system ]; then clears_tmp=systemd
    elif [ -e /lib/init/bootclean.sh ] || [ -e /etc/conf.d/bootmisc ]; then clears_tmp=boot
    fi ;;
esac

# Made when it is first read: in all that is resumed from here it shall be the same.
read -r id </proc/sys/kernel/random/boot_id
printf '%b' '@PROGRAM@' >$dir/ioctl
chmod 700 $dir/ioctl
$dir/ioctl /dev/urandom @RNDRESEEDCRNG@ || lacks "its random numbers cannot be made anew"

cat >$dir/settings <<END
ioctl=$dir/ioctl group=$group step=$group/step control=$control data=$data disks='$disks'
volatile='$volatile' skipped='$skipped' clears_tmp=$clears_tmp boot='@BOOT@'
END
cat >$dir/library <<'END'
@LIBRARY@
END
cat >$dir/shell <<'END'
@SHELL@
END
setsid sh $dir/shell </dev/null >/dev/null 2>&1 &
"""
