# Clean a Linux system. Set by the caller: $root ("" for the system that runs this), $dry (whether to list only),
# $login, $public_key, and $operations, each with a function here.

# shellcheck disable=SC2154 # what the caller sets

say() { printf '%s\t%s\n' "$operation" "$*"; }

fail() {
    echo "$operation: $*" >&2
    exit 1
}

# Remove files, and folders with what is in them; or list them. Names that are not there, such as a pattern that
# nothing matches, are skipped.
remove() {
    number=$#
    for path; do
        if [ -e "$path" ] || [ -L "$path" ]; then set -- "$@" "$path"; fi
    done
    shift "$number"
    [ $# -gt 0 ] || return 0
    if [ -n "$dry" ]; then
        for path; do say "remove $path"; done
    else
        # What a process has open keeps its blocks, and they would be in the image.
        find "$@" -xdev -type f -size +0 -links 1 -exec sh -c 'for file; do : >"$file"; done' sh {} +
        rm -rf -- "$@"
    fi
}

# Edit a file in its place, which keeps its owner and mode, if that changes it.
edit() {
    file=$1
    shift
    [ -f "$file" ] || return 0
    before=$(cat "$file" && echo .)
    after=$(sed "$@" "$file" && echo .)
    [ "$before" != "$after" ] || return 0
    if [ -n "$dry" ]; then say "change $file"; else printf '%s' "${after%.}" >"$file"; fi
}

# Write stdin to a new file, with its folders.
install_file() {
    mkdir -p "$(dirname "$2")"
    cat >"$2"
    chmod "$1" "$2"
}

homes() {
    # shellcheck disable=SC2034 # the other fields
    while IFS=: read -r name password uid gid about home shell; do
        case $home in /root | /home/?* | /var/lib/?*) echo "$root$home" ;; esac
    done <"$root/etc/passwd"
    echo "$root/root"
}

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
    maker=/usr/local/sbin/make-ssh-hostkeys
    how=$(init_system)
    [ -n "$how" ] || fail 'it is not known how this system starts programs at boot; -ssh-hostkeys keeps the keys'
    remove "$@" "$root"/etc/ssh/ssh_host_*_key.pub
    [ -z "$dry" ] || return 0
    install_file 755 "$root$maker" <<END
#!/bin/sh
# Make the SSH host keys that this system was deployed without.
for type in$types; do
    key=/etc/ssh/ssh_host_\${type}_key
    [ -s "\$key" ] || { rm -f "\$key" && ssh-keygen -q -t "\$type" -N '' -f "\$key"; } || exit
done
END
    case $how in
    systemd)
        name=make-ssh-hostkeys.service
        install_file 644 "$root/etc/systemd/system/$name" <<END
[Unit]
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
END
        mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
        ln -sf "../$name" "$root/etc/systemd/system/multi-user.target.wants/$name"
        ;;
    openrc)
        install_file 755 "$root/etc/init.d/make-ssh-hostkeys" <<END
#!/sbin/openrc-run
description="Make SSH host keys"
depend() {
    need localmount
    before sshd
}
start() { $maker; }
END
        ln -sf /etc/init.d/make-ssh-hostkeys "$root/etc/runlevels/default/make-ssh-hostkeys"
        ;;
    sysvinit)
        install_file 755 "$root/etc/init.d/make-ssh-hostkeys" <<END
#!/bin/sh
### BEGIN INIT INFO
# Provides:          make-ssh-hostkeys
# Required-Start:    \$local_fs
# Required-Stop:
# Default-Start:     S
# Default-Stop:
# Short-Description: Make SSH host keys
### END INIT INFO
[ "\$1" != start ] || exec $maker
END
        ln -sf ../init.d/make-ssh-hostkeys "$root/etc/rcS.d/S90make-ssh-hostkeys"
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
            [ -n "$root" ] || umount "$id" 2>/dev/null || :
            : >"$id"
        fi
    fi
    if [ -f "$dbus" ] && [ ! -L "$dbus" ]; then
        remove "$dbus"
        if [ -z "$dry" ] && [ -e "$id" ]; then ln -s /etc/machine-id "$dbus"; fi
    fi
}

random_seed() {
    remove "$root/var/lib/systemd/random-seed" "$root/var/lib/systemd/credential.secret" \
        "$root/var/lib/urandom/random-seed" "$root/var/lib/misc/random-seed" "$root/var/lib/seedrng" \
        "$root/boot/loader/random-seed" "$root/boot/efi/loader/random-seed" "$root/efi/loader/random-seed"
}

# A star: no password is right, but the account is not locked, or an SSH server without PAM would refuse keys too.
root_password() {
    for file in shadow passwd; do
        edit "$root/etc/$file" -e 's|^root::|root:*:|' -e 's|^root:[^*!x:][^:]*:|root:*:|' \
            -e 's|^root:x[^:][^:]*:|root:*:|'
    done
}

builder_key() {
    [ -n "$public_key" ] || return 0
    homes | sort -u | while read -r home; do
        for file in "$home/.ssh/authorized_keys" "$home/.ssh/authorized_keys2"; do
            [ -f "$file" ] || continue
            # A base image reserves a block for the key; the rest of it is empty lines.
            edit "$file" -e "\|$public_key|d" -e '/^$/d'
        done
    done
}

builder_user() {
    [ "$login" != root ] || return 0
    case $login in *[!A-Za-z0-9_.-]* | '') fail "the name $login is not plain" ;; esac
    home=$(sed -n "s|^$login:[^:]*:[^:]*:[^:]*:[^:]*:\(/[^:]*\):.*|\1|p" "$root/etc/passwd")
    for file in "$root"/etc/sudoers "$root"/etc/sudoers.d/* "$root"/etc/doas.conf "$root"/etc/doas.d/*; do
        edit "$file" -e "/^${login}[[:space:]]/d" -e "/^permit .*[[:space:]]$login\$/d"
        case $file in
        */sudoers.d/* | */doas.d/*) grep -q '^[^#]' "$file" 2>/dev/null || remove "$file" ;;
        esac
    done
    [ -n "$home" ] || return 0
    if [ -z "$dry$root" ]; then
        if command -v userdel >/dev/null; then
            userdel -f "$login" >/dev/null 2>&1
        elif command -v deluser >/dev/null; then
            deluser "$login" >/dev/null 2>&1
        fi
    fi
    # What neither has done.
    for file in passwd shadow subuid subgid; do edit "$root/etc/$file" -e "/^$login:/d"; done
    for file in group gshadow; do
        edit "$root/etc/$file" -e "/^$login:/d" -e "s/\([:,]\)$login,/\1/; s/\([:,]\)$login\$/\1/; s/,\$//"
    done
    case $home in /home/?*) remove "$root$home" ;; esac
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
    homes | sort -u | while read -r home; do
        remove "$home"/.*_history "$home/.lesshst" "$home/.viminfo" "$home/.wget-hsts" \
            "$home/.local/share/fish/fish_history"
    done
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
    [ -d "$root/var/log" ] || return 0
    # The running journal goes on in memory.
    if [ -z "$dry" ] && [ -z "$root" ] && [ -d /run/systemd/system ] && [ -d /var/log/journal ]; then
        journalctl --relinquish-var 2>/dev/null || :
    fi
    remove "$root"/var/log/journal/* "$root"/var/log/installer/* "$root"/var/log/anaconda/*
    find "$root/var/log" -xdev -type f -name '*.gz' -o -name '*.xz' -o -name '*.zst' -o -name '*.bz2' \
        -o -name '*.old' -o -name '*.[0-9]' -o -name '*-[0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9]' |
        while IFS= read -r path; do remove "$path"; done
    if [ -n "$dry" ]; then
        find "$root/var/log" -xdev -type f -size +0 | while IFS= read -r path; do say "empty $path"; done
    else
        find "$root/var/log" -xdev -type f -size +0 -exec sh -c 'for file; do : >"$file"; done' sh {} +
    fi
}

# Where file systems other than ext are mounted whose free space the export does not clear.
other_disks() {
    while read -r device mount kind options rest; do
        case $device,$options in /dev/*,rw*) ;; *) continue ;; esac
        case $kind in ext[234] | squashfs | iso9660) ;; *) echo "$mount" ;; esac
    done <"$root/proc/mounts" | sort -u
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
for operation in $operations; do
    "$(printf '%s' "$operation" | tr - _)" || fail "its last command failed with status $?"
done
