# The end of a step, and the start of the next one.

# End all processes of the step's cgroup and of logins.
end_step() {
    for session in /sys/fs/cgroup/user.slice/*/session-*.scope; do
        [ ! -e "$session" ] || echo 1 >"$session/cgroup.kill"
    done
    read -r pid <$step/cgroup.procs || return 0
    kill -TERM $(cat $step/cgroup.procs)
    read -r uptime rest </proc/uptime
    patience=$((${uptime%.*} + grace))
    while read -r pid <$step/cgroup.procs && read -r uptime rest </proc/uptime && [ ${uptime%.*} -lt $patience ]; do
        sleep 0.05
    done
    echo 1 >$step/cgroup.kill
    while read -r pid <$step/cgroup.procs; do sleep 0.02; done
} 2>/dev/null

freeze() {
    frozen=
    for mount in $disks; do
        if $tool i "$mount" $fifreeze || mount -o remount,ro "$mount"; then
            frozen="$mount $frozen"
        else
            thaw
            return 1
        fi
    done
} 2>/dev/null

thaw() {
    for mount in $frozen; do $tool i "$mount" $fithaw || mount -o remount,rw "$mount"; done
} 2>/dev/null

# A guest boots with the closed network; only on the open one does QEMU's DHCP give a gateway and a name server.
open_network() {
    card='' gateway=''
    while read -r name to via rest; do
        case $to in 00000000) gateway=$name ;; 0002000A) card=$name ;; esac
    done </proc/net/route
    [ -z "$gateway" ] || return 0
    [ -n "$card" ] || return 1
    ip route add default via 10.0.2.2 dev $card || route add default gw 10.0.2.2 $card || return 1
    opened=$card
    while read -r word server; do
        case $word,$server in
        nameserver,127.0.0.53)
            resolvectl dns $card 10.0.2.3
            return
            ;;
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

# Set $clears_tmp to what empties /tmp at a boot, if it is on the disk.
who_clears_tmp() {
    clears_tmp=
    case " $volatile " in
    *" /tmp "*) ;;
    *)
        if [ -d /run/systemd/system ]; then
            clears_tmp=systemd
        elif [ -e /lib/init/bootclean.sh ] || [ -e /etc/conf.d/bootmisc ]; then
            clears_tmp=boot
        fi
        ;;
    esac
}

freeze_until_told() {
    end_step
    close_network
    if [ -z "$always" ]; then
        take_down
        unchanged || take_down # something was late
        who_clears_tmp
    fi
    why=
    if [ -e "$reboot" ]; then
        why="the file $reboot exists"
    elif [ "$clears_tmp" = boot ] && ! tmp_is_as_it_was; then
        why='a boot clears /tmp'
    elif ! unchanged; then
        : "${why:=the state of the guest cannot be read}"
    elif ! freeze; then
        why='a file system cannot be frozen'
    fi
    if [ -n "$why" ]; then
        printf '%s boot %s\n' "$mark" "$why" >&4
        return
    fi
    printf '%s frozen\n' "$mark" >&4
    read -r time seed network mark <&3
    if [ "$seed" != - ]; then
        printf '%s' "$seed" >/dev/urandom
        $tool i /dev/urandom $reseed
    fi
    $tool c "$time"
    thaw
    if [ "$clears_tmp" = systemd ] && ! tmp_is_as_it_was; then
        systemd-tmpfiles --create --remove --boot --exclude-prefix=/dev >/dev/null 2>&1
    fi
    [ "$network" = closed ] || open_network
}
