# shellcheck shell=sh disable=SC2154
# Write the disk image in the payload to a disk of this machine, read it back, and power off.
# Settings: size (of the image, in bytes), sha256, disk (which one; empty: the only one), unattended, title.

read -r cmdline </proc/cmdline
for word in $cmdline; do
    case $word in
    obuild.disk=*) disk=${word#*=} ;;
    obuild.unattended) unattended=1 ;;
    esac
done

terminals=$(cat /sys/class/tty/console/active)
tell() { for terminal in $terminals; do printf '%s\r\n' "$*" >"/dev/$terminal"; done; }

# Set `answer` to a line from whichever console has one first.
ask() {
    rm -f /answer
    mkfifo /answer
    readers=
    for terminal in $terminals; do
        printf '%s ' "$*" >"/dev/$terminal"
        { read -r line <"/dev/$terminal" && echo "$line" >/answer; } &
        readers="$readers $!"
    done
    read -r answer </answer
    # shellcheck disable=SC2086  # a list of words
    kill $readers 2>/dev/null
}

stop() {
    tell "$*"
    sync
    sleep 2
    poweroff -f
}

mib() { echo $(($1 >> 20)) MiB; }

# What a disk can be named by: the kernel's name, its serial number and its id, one in each line.
names_of() {
    echo "$1"
    for attribute in serial wwid device/serial device/wwid; do
        cat "/sys/block/$1/$attribute" 2>/dev/null
    done
    tail -c +5 "/sys/block/$1/device/vpd_pg80" 2>/dev/null | tr -d '\0'
}

size_of() { echo $(($(cat "/sys/block/$1/size") * 512)); }

describe() {
    model=$(cat "/sys/block/$1/device/model" 2>/dev/null)
    echo "/dev/$1: $(mib "$(size_of "$1")")" ${model:+"$model"}
}

# Whether the disk $1 is called $2, as itself, or as udev would: ata-MODEL_SERIAL.
is_called() {
    names_of "$1" | tr -s ' ' '_' | {
        while read -r name; do
            name=${name%_}
            [ -n "$name" ] || continue
            case ${2#/dev/} in "$name" | *[-_/]"$name") exit 0 ;; esac
        done
        exit 1
    }
}

# Set `found` to the disks that can take the image: large enough, writable, and not this medium.
find_disks() {
    found=
    for entry in /sys/block/*; do
        name=${entry##*/}
        case $name in loop* | ram* | sr* | fd* | zram* | dm-* | md* | nbd*) continue ;; esac
        [ "$(cat "$entry/ro")" = 0 ] || continue
        # In ISO 9660, the label of the volume.
        case $(dd if="/dev/$name" bs=1 skip=32808 count=32 2>/dev/null) in "$volume"*) continue ;; esac
        [ "$(size_of "$name")" -ge "$size" ] && found="$found $name"
    done
}

# Set `target` to the disk that the settings choose, or to nothing.
choose() {
    target=
    case $disk in
    smallest | largest)
        for name in $found; do
            [ -n "$target" ] || target=$name
            if [ "$disk" = largest ]; then
                [ "$(size_of "$name")" -gt "$(size_of "$target")" ] && target=$name
            else
                [ "$(size_of "$name")" -lt "$(size_of "$target")" ] && target=$name
            fi
        done
        ;;
    '')
        # shellcheck disable=SC2086  # a list of words
        set -- $found
        [ $# = 1 ] && target=$1
        ;;
    *)
        for name in $found; do is_called "$name" "$disk" && target=$name; done
        ;;
    esac
}

find_payload
mount -t squashfs -o loop,ro "$file" /payload || fail "cannot mount the image"

# A disk may take some seconds to appear, too, and the last one to appear may be the one that is meant.
tries=0
while :; do
    before=$found
    find_disks
    choose
    [ $tries -ge 3 ] && [ -n "$target" ] && [ "$found" = "$before" ] && break
    tries=$((tries + 1))
    [ $tries = 15 ] && break
    sleep 1
done

tell ""
tell "Install $title, a disk of $(mib "$size")"
for name in $found; do tell "  $(describe "$name")"; done
if [ -z "$found" ]; then fail "no disk of this machine can take an image of $(mib "$size")"; fi
if [ -z "$target" ]; then
    [ -z "$unattended" ] || fail "no disk is ${disk:-the only one}: name one with obuild.disk="
    while [ -z "$target" ]; do
        ask "The name of the disk, or an empty line to stop:"
        [ -n "$answer" ] || stop "Nothing was written."
        disk=$answer
        choose
    done
elif [ -z "$unattended" ]; then
    ask "Type yes to overwrite $(describe "$target"):"
    [ "$answer" = yes ] || stop "Nothing was written."
fi

device=/dev/$target
say "writing $device"
total=$(((size + 1048575) >> 20))
step=$((total / 10 + 1))
at=0
while [ $at -lt $total ]; do
    dd if=/payload/disk.raw of="$device" bs=1M skip=$at seek=$at count=$step conv=fsync 2>/dev/null ||
        fail "cannot write to $device"
    at=$((at + step))
    [ $at -lt $total ] && tell "$((at * 100 / total)) %"
done
# What was at the end of a larger disk, such as a backup partition table or an array's label, would be misleading.
rest=$((($(size_of "$target") - size) / 512))
[ $rest -le 2048 ] || rest=2048
[ $rest = 0 ] || dd if=/dev/zero of="$device" bs=512 count=$rest conv=fsync \
    seek=$(($(size_of "$target") / 512 - rest)) 2>/dev/null || fail "cannot write to $device"

say "reading $device back"
blockdev --flushbufs "$device"
echo 3 >/proc/sys/vm/drop_caches
read_back=$(head -c "$size" "$device" | sha256sum)
[ "${read_back%% *}" = "$sha256" ] || fail "$device does not hold what was written: it may be damaged"
say "$title is installed on $device"
stop "Installed. Remove the medium before the machine starts again."
