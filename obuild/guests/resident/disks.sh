# Set `disks` to where file systems on disks are mounted that can be written, as mountinfo spells it: innermost first,
# the root last. A disk that is mounted twice is there once.
find_disks() {
    disks='' devices=''
    while read -r id parent device root mount options rest; do
        case " $rest" in *" - "*" /dev/"*) ;; *) continue ;; esac
        case "$options" in ro | ro,*) continue ;; esac
        case " $devices " in *" $device "*) continue ;; esac
        devices="$devices $device" disks="$mount $disks"
    done </proc/self/mountinfo
}
