# The state that a step must not change. Each list names things for the tool (see amd64.S):
# `always` is compared after each step; `written` if the kernel reports a write to /proc or /sys or a mount, or if
# the step has started many programs, which may have had mounts of their own; `manager` shows whether systemd has
# done anything.

# How many programs a step may start before everything is compared.
few=64

name_always() {
    echo p
    for file in /proc/self/mountinfo /proc/swaps /proc/net/route /proc/net/fib_trie /proc/net/if_inet6 \
        /proc/sysvipc/msg /proc/sysvipc/sem /proc/sysvipc/shm /proc/key-users \
        /proc/sys/kernel/hostname /proc/sys/kernel/domainname /proc/sys/kernel/printk /sys/kernel/kexec_loaded \
        /sys/kernel/security/apparmor/profiles $cgroups/cgroup.subtree_control \
        "/proc/$$/limits" "/proc/$$/oom_score_adj" /proc/1/limits /proc/1/oom_score_adj \
        /sys/kernel/tracing/kprobe_events /sys/kernel/tracing/uprobe_events \
        /sys/class/net/*/flags /sys/class/net/*/mtu /sys/class/net/*/address /sys/class/net/*/tx_queue_len \
        /sys/class/net/*/ifalias /sys/block/*/size /sys/block/*/ro; do
        echo "f $file"
    done
    echo v /proc/net/ipv6_route
    for folder in /sys/module /sys/block /sys/class/* /sys/fs/bpf; do echo "d $folder"; done
    # reading a folder with an automount would mount it
    ! grep -q ' - binfmt_misc ' /proc/self/mountinfo || echo d /proc/sys/fs/binfmt_misc
    for name in $boot; do echo "s $name"; done
    # what is mounted below a folder is listed separately, or not at all
    while read -r id parent device root mount rest; do echo "x $mount"; done </proc/self/mountinfo
    for folder in $volatile; do
        for name in $kept; do echo "x $folder/$name"; done
    done
    echo "x $cgroups/user.slice"
    echo "D $cgroups"
    for folder in /dev $volatile; do
        echo "o $folder"
        echo "t $folder"
    done
    for folder in system system.control transient generator generator.early generator.late; do
        echo "t /run/systemd/$folder"
    done
}

# All files that can be written to, except those whose values change by themselves.
name_written() {
    find /proc/sys /sys -xdev \( -path /sys/kernel/slab -o -path /sys/firmware/acpi -o -path /proc/sys/kernel/random \
        -o -path /proc/sys/fs/binfmt_misc -o -name ns_last_pid -o -name stat_refresh -o -name uevent \) -prune \
        -o -type f -perm -600 -print | sed 's/^/f /'
}

# Set $now to a hash of everything that a list names.
look() { $tool h "$dir/$1" >$dir/hash && read -r now <$dir/hash || now='it failed'; }

take_down_list() {
    "name_$1" >"$dir/$1"
    $tool l "$dir/$1" >"$dir/$1.before" 2>$dir/hash
    read -r now <$dir/hash
}

# The lines of one file that are not in the other.
only_in() { grep -vxF -f "$2" "$1"; }

# The lines that are in only one of two files.
differing() {
    only_in "$1" "$2"
    only_in "$2" "$1"
}

# Set $line to the first difference in a list. It runs in no subshell, which would be one more process.
find_difference() {
    $tool l "$dir/$1" >$dir/new
    differing $dir/new "$dir/$1.before" >$dir/more
    read -r line <$dir/more || line='something that has gone again'
    case $line in
    'process '*)
        if grep -qxF "$line" $dir/new; then verdict='was added'; else verdict='has gone'; fi
        line="${line% * *} $verdict"
        ;;
    /proc/self/mountinfo*)
        cat /proc/self/mountinfo >$dir/new
        line="the mount $(differing $dir/new $dir/mounts | sed q)"
        ;;
    /*' '*) line=${line%% *} ;;
    esac
}

# Compare `always` until nothing differs, or something differs that does not go away by itself.
look_again() {
    tries=20
    while look always && [ "$now" != "$always" ]; do
        find_difference always
        case $line in 'process '*' was added' | $cgroups/* | *'has gone again') ;; *) return 1 ;; esac
        [ $tries -gt 0 ] || return 1
        tries=$((tries - 1))
        sleep 0.05
    done
}

# The units and environment in systemd's memory, without those of logins, which go when the login ends.
units() {
    systemctl list-units --plain --no-legend --no-pager --full \
        --type=service,socket,timer,path,target,scope,automount |
        grep -v -e '^user@' -e '^user-runtime-dir@' -e '^session-'
    systemctl show-environment
}

# Record what shows that systemd has done anything. Wait first: it is still closing the connection of our last query.
remember_manager() {
    sleep 0.05
    look manager
    manager=$now
}

# The firewall's rules, if the guest has booted with a firewall; if not, a new module shows one.
rules() {
    nft -s list ruleset
    iptables-save | sed 's/\[.*//'
}

# Set $started to the number of the newest process.
count() { read -r load1 load5 load15 running started </proc/loadavg; }

# Whether duplicate detection of an IPv6 address is still running (0x40 in its flags: tentative).
has_new_addresses() {
    while read -r address interface prefix scope flags name; do
        case $flags in [4-7c-f]?) return 0 ;; esac
    done </proc/net/if_inet6
    return 1
}

# Wait until the processes of the login have ended, and the boot is complete.
wait_until_quiet() {
    if [ -d /run/systemd/system ] && [ -z "$(ls /var/lib/systemd/linger)" ]; then
        systemctl stop 'user@*.service' # it would stay for ten seconds otherwise
    fi
    tries=200
    for process in $login; do
        while [ -e "$process" ] && [ $tries -gt 0 ]; do
            sleep 0.05
            tries=$((tries - 1))
        done
    done
    tries=100
    while has_new_addresses && [ $tries -gt 0 ]; do
        sleep 0.05
        tries=$((tries - 1))
    done
    name_always >$dir/always
    : >$dir/new
    quiet=0 tries=100
    while [ $quiet -lt 3 ] && [ $tries -gt 0 ]; do
        sleep 0.05
        look always
        if [ "$now" = "$always" ]; then quiet=$((quiet + 1)); else quiet=0; fi
        always=$now tries=$((tries - 1))
        # udev's workers stay for some seconds to wait for more work
        [ ! -d /run/udev ] || $tool l $dir/always | grep '^process .*udev' >$dir/new
        while read -r kind process name parent start; do
            [ "$parent" = 1 ] || kill "$process"
        done <$dir/new
    done
}

# Record the state after the boot.
take_down() {
    volatile=
    while read -r id parent device root mount options rest; do
        type=${rest#*- }
        case ${type%% *},$mount in
        *,/sys/* | *,/dev | *,/run/user/* | *,/run/credentials/* | *,$dir | *,*\\*) ;;
        tmpfs,* | ramfs,*) volatile="$volatile $mount" ;;
        esac
    done </proc/self/mountinfo
    wait_until_quiet
    take_down_list always
    always=$now
    cat /proc/self/mountinfo >$dir/mounts
    take_down_list written
    written=$now
    no_ipc=
    [ -n "$(ipc shm)$(ipc sem)$(ipc msg)" ] || no_ipc=yes
    ruled=
    if [ -d /sys/module/nf_tables ] || [ -e /proc/net/ip_tables_names ]; then ruled=yes; fi
    [ -z "$ruled" ] || rules >$dir/rules
    manager=
    if [ -d /run/systemd/system ]; then
        echo 'f /proc/1/status' >$dir/manager
        units >$dir/units
        remember_manager
    fi
    $tool q
    count
    before=$started
} 2>/dev/null

# Undo a step's mounts, remove what it has left in memory, and send SIGTERM to new processes of services.
clean() {
    cat /proc/self/mountinfo >$dir/new
    # the last mount first; a space is \040 in mountinfo
    only_in $dir/new $dir/mounts | sed '1!G;h;$!d' | while read -r id parent device root mount rest; do
        grep -q "^$id " $dir/mounts || [ "$mount" = / ] || umount -l "$(printf '%b' "$mount")"
    done
    $tool l $dir/always >$dir/new
    only_in $dir/new $dir/always.before >$dir/more
    while IFS= read -r line; do
        case $line in
        'process '*)
            parent=${line% *} line=${line#process }
            [ "${parent##* }" = 1 ] || kill "${line%% *}"
            ;;
        /*' '*' '*' '*' '*' '*)
            path=${line% * * * * *}
            case $path in /run/systemd/*) continue ;; esac # systemd would have to be told
            ! grep -qF "$path " $dir/always.before || continue
            for folder in $volatile; do
                case $path in "$folder"/*) rm -rf -- "$path" ;; esac
            done
            case $path in /dev/*) is_device "$path" || rm -rf -- "$path" ;; esac
            ;;
        /proc/sysvipc/*)
            [ -z "$no_ipc" ] || remove_ipc
            ;;
        esac
    done <$dir/more
} 2>/dev/null

is_device() { [ ! -L "$1" ] && { [ -c "$1" ] || [ -b "$1" ]; }; }

# The ids of System V's shared memory (shm), semaphores (sem) or queues (msg).
ipc() { sed -n 's/^ *-*[0-9]* *\([0-9]*\) .*/\1/p' "/proc/sysvipc/$1"; }

remove_ipc() {
    for id in $(ipc shm); do ipcrm -m "$id"; done
    for id in $(ipc sem); do ipcrm -s "$id"; done
    for id in $(ipc msg); do ipcrm -q "$id"; done
}

# Whether the state is that after the boot, or could be restored; otherwise $why says what differs.
unchanged() {
    count
    programs=$((started - before)) before=$started told=
    $tool q || told=yes
    look always
    if [ "$now" != "$always" ]; then
        clean
        if ! look_again; then
            why="the state of the guest has changed: $line"
            return 1
            fi
            $tool q # forget the unmounts of `clean`
    fi
    # below zero: process numbers have wrapped around
    if [ -n "$told" ] || [ $programs -lt 0 ] || [ $programs -gt $few ]; then
        look written
        if [ "$now" != "$written" ] && ! only_counters; then
            find_difference written
            why="the state of the guest has changed: $line"
            return 1
        fi
    fi
    if [ -n "$ruled" ] && rules >$dir/new && ! cmp -s $dir/new $dir/rules; then
        why='the firewall has changed'
        return 1
    fi
    [ -z "$manager" ] || units_unchanged
} 2>/dev/null

# Drop values that change whenever they are read: they are not settings. Whether nothing else differs.
only_counters() {
    $tool l $dir/written >$dir/new
    $tool l $dir/written >$dir/more
    only_in $dir/new $dir/more | sed 's/ [^ ]*$/ /' >$dir/counters
    [ -s $dir/counters ] || return 1
    grep -vF -f $dir/counters $dir/more >$dir/new
    grep -vF -f $dir/counters $dir/written.before >$dir/more
    cmp -s $dir/new $dir/more || return 1
    cat $dir/new >$dir/written.before
    sed 's/ [^ ]*$//; s/^/f /' $dir/new >$dir/written
    look written
    written=$now
}

units_unchanged() {
    look manager
    [ "$now" != "$manager" ] || return 0
    tries=10
    while units >$dir/new && ! cmp -s $dir/new $dir/units; do
        if [ $tries = 0 ]; then
            why="what systemd runs has changed: $(differing $dir/new $dir/units | sed q)"
            return 1
        fi
        sleep 0.2
        tries=$((tries - 1))
    done
    remember_manager
}
