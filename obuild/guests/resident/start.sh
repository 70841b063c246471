# Check that the guest has what the resident shell needs, and prepare it. Set by the caller: $dir, $control_name,
# $data_name, find_disks.

lacks() {
    echo "$1"
    exit "$lacking"
}
for tool in cat chmod cmp dd find grep mkfifo mount rm sed setsid sleep umount; do
    command -v $tool >/dev/null || lacks "it has no $tool"
done

# Units that are still starting would look like something that a step has started.
[ ! -d /run/systemd/system ] || timeout 120 systemctl is-system-running --wait >/dev/null 2>&1

modprobe virtio_console 2>/dev/null
tries=200
while :; do
    control='' data=''
    for port in /sys/class/virtio-ports/*; do
        if [ -e "$port/name" ]; then read -r name <"$port/name"; else continue; fi
        case $name in "$control_name") control=/dev/${port##*/} ;; "$data_name") data=/dev/${port##*/} ;; esac
    done
    if [ -c "$control" ] && [ -c "$data" ]; then break; fi
    tries=$((tries - 1))
    [ $tries -gt 0 ] || lacks "its kernel has no virtio_console"
    sleep 0.05
done

mkdir -p $dir
mount -t tmpfs -o mode=700 obuild $dir || lacks "it cannot mount a tmpfs"
cgroups=/sys/fs/cgroup
if [ ! -e $cgroups/cgroup.controllers ]; then
    cgroups=$dir/cgroup
    mkdir $cgroups
    mount -t cgroup2 obuild $cgroups 2>/dev/null || lacks "it has no cgroups of version 2"
fi
group=$cgroups/obuild
mkdir -p $group/shell $group/step
[ -e $group/step/cgroup.kill ] || lacks "its kernel is older than 5.14"

find_disks
[ -n "$disks" ] || lacks "it has no disk to freeze"

# The processes of this login, which stay for a while: all ancestors up to the one that init has started.
login='' process=$$
while read -r line <"/proc/$process/stat"; do
    set -- ${line##*) }
    [ "$2" -gt 1 ] || break
    login="$login /proc/$process" process=$2
done

# The kernel makes the boot id when it is first read. Read it now, so that all resumed machines have the same.
read -r id </proc/sys/kernel/random/boot_id
printf '%b' "$program" >$dir/tool
chmod 700 $dir/tool
$dir/tool i /dev/urandom $reseed || lacks "its random number generator cannot be reseeded"
echo : >$dir/nothing
$dir/tool w $dir/nothing || lacks "its kernel has no fanotify"

cat >$dir/settings <<END
tool=$dir/tool cgroups=$cgroups group=$group step=$group/step control=$control data=$data disks='$disks'
login='$login'
END
