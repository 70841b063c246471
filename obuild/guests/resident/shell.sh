# The resident shell: it reads requests from the control port, and answers them.

. $dir/settings
. $dir/look
. $dir/library

# Put together the pieces that come through the data port.
pieces() {
    while read -r size <&5 && [ "$size" -gt 0 ]; do dd bs="$size" count=1 iflag=fullblock <&5 2>/dev/null; done
}

echo $$ >$group/shell/cgroup.procs
exec 3<>$control 5<>$data
mkfifo $dir/out
# so that a step's own user can open /dev/stdout
chmod 622 $dir/out
exec 4<>$dir/out
cat <&4 >&3 3>&- 4>&- 5>&- 6>&- 7>&- &
cd /
opened='' always=''
set -- /tmp/* /tmp/.[!.]*
tmp=$*
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
    step) (echo 0 >$step/cgroup.procs && . $dir/script) </dev/null >&4 2>&1 3>&- 4>&- 5>&- 6>&- 7>&- ;;
    check) (. $dir/script) </dev/null >&4 2>&1 3>&- 4>&- 5>&- 6>&- 7>&- ;;
    stream)
        pieces | {
            (. $dir/script) >&4 2>&1 3>&- 4>&- 5>&- 6>&- 7>&-
            status=$?
            cat >/dev/null
            exit $status
        }
        ;;
    fetch)
        (. $dir/script) </dev/null >&5 2>&4 3>&- 4>&- 5>&- 6>&- 7>&-
        status=$?
        printf '%s 0\n' "$mark" >&5
        (exit $status)
        ;;
    freeze) freeze_until_told ;;
    esac
    printf '%s %d\n' "$mark" $? >&4
done
