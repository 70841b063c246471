# shellcheck shell=sh disable=SC2154
# Start the layer's system. Its files are in the payload, and what it changes is in memory, or on the partition with
# the label that `persist` names.

program=/sbin/init
read -r cmdline </proc/cmdline
for word in $cmdline; do
    case $word in
    init=*) program=${word#*=} ;;
    obuild.persist=*) persist=${word#*=} ;;
    esac
done

find_payload
mount -t squashfs -o loop,ro "$file" /payload || fail "cannot mount the root of the system"

kept=
if [ -n "$persist" ]; then
    tries=0
    until device=$(findfs "LABEL=$persist" 2>/dev/null); do
        tries=$((tries + 1))
        [ $tries = 100 ] && break
        usleep 100000
    done
    if [ -n "$device" ] && mount "$device" /changes; then
        kept=1
    else
        say "there is no partition with the label $persist that can be mounted: changes are lost at power-off"
    fi
fi
[ -n "$kept" ] || mount -t tmpfs -o mode=755 changes /changes
mkdir -p /changes/upper /changes/work
layers=lowerdir=/payload,upperdir=/changes/upper,workdir=/changes/work
mount -t overlay -o "$layers" overlay /root || fail "cannot make the root of the system writable"

# The disks that fstab names are elsewhere.
if [ -f /root/etc/fstab ] && [ ! -e /changes/upper/etc/fstab ]; then
    sed -i -E '/^[[:space:]]*(UUID=|LABEL=|PARTUUID=|PARTLABEL=|\/dev\/)/s/^/# not on a live system: /' /root/etc/fstab
fi

# Where the system can find them, to unmount them.
if [ -d /root/run ]; then
    mount -t tmpfs -o mode=755,nosuid,nodev run /root/run
    mkdir -p /root/run/live/changes /root/run/live/medium
    mount -o move /changes /root/run/live/changes
    [ -d /medium/live ] && mount -o move /medium /root/run/live/medium
fi

umount /proc
umount /sys
mount -o move /dev /root/dev
exec switch_root /root "$program"
