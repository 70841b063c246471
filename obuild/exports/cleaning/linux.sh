# Clean a Linux system. Set by the caller: $root ("" for the system that runs this), $dry (whether to list only),
# $login, $public_key, $list (a file to be made), and $operations: pairs NAME=FUNCTION.
#
# Starting a program takes a tenth of a second in an emulated guest, so the shell itself does what it can, and what
# is to be removed is removed at once, at the end.
# shellcheck disable=SC2154 # what the caller sets

say() { printf '%s\t%s\n' "$operation" "$*"; }

fail() {
    echo "$operation: $*" >&2
    exit 1
}

# Remove files, and folders with what is in them, at the end; or list them. Names that are not there, such as a
# pattern that nothing matches, are skipped.
remove() {
    for path; do
        if [ -e "$path" ] || [ -L "$path" ]; then
            if [ -n "$dry" ]; then say "remove $path"; else printf '%s\0' "$path" >>"$list"; fi
        fi
    done
}

# Write a text to a file, after making its folder.
write() {
    [ -d "${1%/*}" ] || mkdir -p "${1%/*}"
    printf '%s' "$2" >"$1"
}

# Edit the files whose names are the lines of $2 by the sed script $1; or list them.
edit() {
    [ -n "$2" ] || return 0
    old_ifs=$IFS
    IFS='
'
    # shellcheck disable=SC2086 # one for each line
    set -f -- "$1" $2
    IFS=$old_ifs
    set +f
    change=$1
    shift
    if [ -n "$dry" ]; then
        for path; do say "change $path"; done
    else
        sed -i "$change" "$@"
    fi
}

# Print those of some files that have a line which matches $2: an extended expression with -E, a text with -F.
having() {
    syntax=$1
    pattern=$2
    shift 2
    grep -ls "$syntax" -e "$pattern" -- "$@" || :
}

# The home folders of people and services, and the login's own.
homes="$root/root"
own_home=
# shellcheck disable=SC2034 # the other fields
while IFS=: read -r name password uid gid about home shell; do
    [ "$name" != "$login" ] || own_home=$home
    case $home in
    /home/?* | /var/lib/?*)
        case "
$homes
" in *"
$root$home
"*) ;; *) homes="$homes
$root$home" ;; esac
        ;;
    esac
done <"$root/etc/passwd"

# How programs are started at boot.
init_system() {
    case $(readlink -f "$root/sbin/init") in
    */systemd) echo systemd ;;
    */busybox) if [ -x "$root/sbin/openrc-run" ]; then echo openrc; else echo busybox; fi ;;
    *) if [ -x "$root/sbin/openrc-run" ]; then echo openrc; elif [ -d "$root/etc/rcS.d" ]; then echo sysvinit; fi ;;
    esac
}

ssh_hostkeys() {
    set -- "$root"/etc/ssh/ssh_host_*_key
    [ -e "$1" ] || return 0
    types=
    for key; do
        key=${key##*/ssh_host_}
        types="$types ${key%_key}"
    done
    how=$(init_system)
    [ -n "$how" ] || fail 'it is not known how this system starts programs at boot; -ssh-hostkeys keeps the keys'
    remove "$@" "$root"/etc/ssh/ssh_host_*_key.pub
    [ -z "$dry" ] || return 0
    maker=/usr/local/sbin/make-ssh-hostkeys
    service=/etc/init.d/make-ssh-hostkeys
    unit=/etc/systemd/system/make-ssh-hostkeys.service
    write "$root$maker" "#!/bin/sh
# Make the SSH host keys that this system was deployed without.
for type in$types; do
    key=/etc/ssh/ssh_host_\${type}_key
    [ -s \"\$key\" ] || { rm -f \"\$key\" && ssh-keygen -q -t \"\$type\" -N '' -f \"\$key\"; } || exit
done
"
    chmod 755 "$root$maker"
    case $how in
    systemd)
        write "$root$unit" "[Unit]
Description=Make SSH host keys
DefaultDependencies=no
After=local-fs.target systemd-remount-fs.service
Before=ssh.service sshd.service ssh.socket sshd.socket shutdown.target
Conflicts=shutdown.target
ConditionPathExistsGlob=!/etc/ssh/ssh_host_*_key

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=$maker

[Install]
WantedBy=multi-user.target
"
        [ -d "$root/etc/systemd/system/multi-user.target.wants" ] ||
            mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
        ln -sf "$unit" "$root/etc/systemd/system/multi-user.target.wants/${unit##*/}"
        ;;
    openrc)
        write "$root$service" "#!/sbin/openrc-run
description='Make SSH host keys'
depend() {
    need localmount
    before sshd
}
start() { $maker; }
"
        chmod 755 "$root$service"
        ln -sf "$service" "$root/etc/runlevels/default/${service##*/}"
        ;;
    sysvinit)
        write "$root$service" "#!/bin/sh
### BEGIN INIT INFO
# Provides:          make-ssh-hostkeys
# Required-Start:    \$local_fs
# Required-Stop:
# Default-Start:     S
# Default-Stop:
# Short-Description: Make SSH host keys
### END INIT INFO
[ \"\$1\" != start ] || exec $maker
"
        chmod 755 "$root$service"
        ln -sf "$service" "$root/etc/rcS.d/S90make-ssh-hostkeys"
        ;;
    busybox) echo "::wait:$maker" >>"$root/etc/inittab" ;;
    esac
}

machine_id() {
    id=$root/etc/machine-id
    dbus=$root/var/lib/dbus/machine-id
    if [ -s "$id" ]; then
        if [ -n "$dry" ]; then
            say "empty $id"
        else
            # systemd mounts a file over one that it could not write to
            case $mounts in *" /etc/machine-id "*) umount "$id" ;; esac
            : >"$id"
        fi
    fi
    [ -f "$dbus" ] && [ ! -L "$dbus" ] || return 0
    if [ -n "$dry" ] || [ ! -e "$id" ]; then remove "$dbus"; else ln -sf /etc/machine-id "$dbus"; fi
}

random_seed() {
    remove "$root/var/lib/systemd/random-seed" "$root/var/lib/systemd/credential.secret" \
        "$root/var/lib/urandom/random-seed" "$root/var/lib/misc/random-seed" "$root/var/lib/seedrng" \
        "$root/boot/loader/random-seed" "$root/boot/efi/loader/random-seed" "$root/efi/loader/random-seed"
}

# A star: no password is right, but the account is not locked, or an SSH server without PAM would refuse keys too.
root_password() {
    for file in "$root/etc/shadow" "$root/etc/passwd"; do
        [ -f "$file" ] || continue
        found=
        while IFS=: read -r name password rest; do
            case $name,$password in
            root,x | root,[*!]*) ;;
            root,*) found=yes ;;
            esac
        done <"$file"
        [ -z "$found" ] || edit 's/^root:[^:]*:/root:*:/' "$file"
    done
}

builder_key() {
    [ -n "$public_key" ] || return 0
    set --
    while read -r home; do set -- "$@" "$home/.ssh/authorized_keys" "$home/.ssh/authorized_keys2"; done <<END
$homes
END
    # A base image reserves a block for the key; the rest of it is empty lines.
    edit "\|$public_key|d; /^\$/d" "$(having -F "$public_key" "$@")"
}

builder_user() {
    [ "$login" != root ] || return 0
    case $login in *[!A-Za-z0-9_.-]* | '') fail "the name $login is not plain" ;; esac
    space='[[:space:]]'
    set -- "$root"/etc/sudoers.d/* "$root"/etc/doas.d/*
    found=$(having -E "^$login$space" "$root/etc/sudoers" "$@")
    edit "/^$login$space/d" "$found"
    for file; do
        # without a rule that is left
        case "
$found
" in *"
$file
"*) if ! grep -q '^[^#]' "$file"; then remove "$file"; fi ;; esac
    done
    edit "/^permit .*$space$login\$/d" "$(having -E "^permit .*$space$login\$" "$root/etc/doas.conf")"
    [ -n "$own_home" ] || return 0
    edit "/^$login:/d" "$(having -E "^$login:" "$root/etc/passwd" "$root/etc/shadow" "$root/etc/subuid" "$root/etc/subgid")"
    # Each field after a colon or a comma: a member of a group, or an administrator of one.
    edit "/^$login:/d; s/\([:,]\)$login,/\1/g; s/\([:,]\)$login:/\1:/g; s/\([:,]\)$login\$/\1/; s/,:/:/g; s/,\$//" \
        "$(having -E "(^|[:,])$login([:,]|\$)" "$root/etc/group" "$root/etc/gshadow")"
    case $own_home in /home/?*) remove "$root$own_home" ;; esac
    remove "$root/var/mail/$login" "$root/var/spool/mail/$login" "$root/var/spool/cron/crontabs/$login" \
        "$root/var/lib/systemd/linger/$login"
}

account_backups() {
    for file in passwd shadow group gshadow subuid subgid; do remove "$root/etc/$file-"; done
}

cloud_init() {
    remove "$root"/var/lib/cloud/* "$root"/etc/cloud/cloud-init.disabled
}

package_cache() {
    remove "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root"/var/cache/debconf/*-old \
        "$root"/var/lib/dpkg/*-old "$root"/var/cache/dnf/* "$root"/var/cache/libdnf5/* "$root"/var/cache/yum/* \
        "$root"/var/cache/zypp/* "$root"/var/cache/apk/* "$root"/var/cache/pacman/pkg/*
}

histories() {
    while read -r home; do
        remove "$home"/.*_history "$home/.lesshst" "$home/.viminfo" "$home/.wget-hsts" \
            "$home/.local/share/fish/fish_history"
    done <<END
$homes
END
}

dhcp_leases() {
    remove "$root"/var/lib/dhcp/* "$root"/var/lib/dhclient/* "$root"/var/lib/dhcpcd/* "$root"/var/db/dhcpcd/* \
        "$root"/var/lib/NetworkManager/*.lease "$root"/var/lib/NetworkManager/secret_key \
        "$root"/var/lib/NetworkManager/timestamps "$root"/var/lib/wicked/lease-*
}

udev_rules() {
    remove "$root"/etc/udev/rules.d/70-persistent-*.rules "$root"/etc/udev/rules.d/75-persistent-*.rules
}

crash_data() {
    remove "$root"/var/crash/* "$root"/var/lib/systemd/coredump/* "$root"/var/lib/systemd/pstore/* \
        "$root"/var/spool/abrt/*
}

mail() { remove "$root"/var/mail/* "$root"/var/spool/mail/*; }

cron_spool() {
    remove "$root"/var/spool/cron/crontabs/* "$root"/var/spool/cron/tabs/* "$root"/var/spool/cron/atjobs/* \
        "$root"/var/spool/cron/atspool/* "$root"/var/spool/at/* "$root"/var/spool/cron/lastrun/*
    for file in "$root"/var/spool/cron/*; do
        if [ -f "$file" ]; then remove "$file"; fi
    done
}

tmp() {
    remove "$root"/tmp/* "$root"/tmp/.[!.]* "$root"/tmp/..?* \
        "$root"/var/tmp/* "$root"/var/tmp/.[!.]* "$root"/var/tmp/..?*
}

logs() {
    folder=$root/var/log
    [ -d "$folder" ] || return 0
    remove "$folder"/journal/* "$folder"/installer/* "$folder"/anaconda/*
    old=$(find "$folder" -xdev -type f '(' -name '*.gz' -o -name '*.xz' -o -name '*.zst' -o -name '*.bz2' \
        -o -name '*.old' -o -name '*.[0-9]' -o -name '*-[0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9]' ')')
    while IFS= read -r path; do remove "$path"; done <<END
$old
END
    if [ -n "$dry" ]; then
        find "$folder" -xdev -type f -size +0 | while IFS= read -r path; do say "empty $path"; done
        return
    fi
    emptied=$folder
    # The running journal goes on in memory.
    if [ -z "$root" ] && [ -d /run/systemd/system ] && [ -d /var/log/journal ]; then
        journalctl --relinquish-var 2>/dev/null || :
    fi
}

# Where file systems other than ext are mounted whose free space the export does not clear.
other_disks() {
    while read -r device mount kind options rest; do
        case $device,$options in /dev/*,rw*) ;; *) continue ;; esac
        case $kind in ext[234] | squashfs | iso9660) ;; *) echo "$mount" ;; esac
    done <<END
$mounts
END
}

trim() {
    other_disks | while read -r mount; do
        if [ -n "$dry" ]; then say "discard the free space of $mount"; else fstrim "$mount" 2>/dev/null || :; fi
    done
}

zero() {
    other_disks | while read -r mount; do
        if [ -n "$dry" ]; then
            say "fill the free space of $mount with zeros"
        else
            dd if=/dev/zero of="$mount/.zeros" bs=1M 2>/dev/null
            sync
            rm -f "$mount/.zeros"
        fi
    done
}

export LC_ALL=C
umask 022
cd /
emptied=
mounts=
while IFS= read -r line; do
    mounts="$mounts$line
"
done <"$root/proc/mounts"
[ -n "$dry" ] || : >"$list"
for pair in $operations; do
    operation=${pair%=*}
    "${pair#*=}" || fail "its last command failed with status $?"
done
operation=removal
if [ -s "$list" ] || [ -n "$emptied" ]; then
    # What a process has open keeps its blocks, and they would be in the image.
    [ -z "$emptied" ] || printf '%s\0' "$emptied" >"$list.emptied"
    : >>"$list.emptied"
    # shellcheck disable=SC2016 # the inner shell expands them
    cat "$list" "$list.emptied" | xargs -0 sh -c \
        'exec find "$@" -xdev -type f -size +0 -links 1 -exec sh -c "for file; do : >\"\$file\"; done" sh {} +' sh ||
        fail 'some files cannot be emptied'
    xargs -0 rm -rf -- <"$list" || fail 'some files cannot be removed'
fi
rm -f "$list" "$list.emptied"
