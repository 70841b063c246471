#!/bin/busybox sh
# The first program of an ISO, from its initial RAM disk: load drivers, and find the payload, a squashfs image. GRUB
# may have loaded it into memory, as /payload.squashfs. Else it is a file of the medium.
# shellcheck shell=sh disable=SC1091,SC2154,SC2034  # the settings are in a file that the host writes

export PATH=/bin
applets=/bin/busybox
$applets --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
. /settings

# Shown on all consoles, also by a kernel that was told to be quiet.
say() { echo "<3>obuild: $*" >/dev/kmsg; }

fail() {
    say "$*"
    while :; do sleep 3600; done
}

while read -r module; do insmod "/modules/$module" 2>/dev/null; done </modules/order

# Set `file` to the payload. A medium may take some seconds to appear.
find_payload() {
    file=/payload.squashfs
    [ -f $file ] && return
    file=/medium/live/$id/payload.squashfs
    tries=0
    while [ $tries -lt 300 ]; do
        for entry in /sys/class/block/*; do
            case ${entry##*/} in loop* | ram*) continue ;; esac
            mount -t iso9660 -o ro "/dev/${entry##*/}" /medium 2>/dev/null || continue
            [ -f "$file" ] && return
            umount /medium
        done
        tries=$((tries + 1))
        usleep 100000
    done
    fail "cannot find the medium with $volume: choose the entry of the boot menu that loads it into memory"
}

