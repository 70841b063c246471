"""User-data for the BSDs: one script sets the guest up, and reports the result on the serial line.

FreeBSD's nuageinit and cloud-init on OpenBSD run user-data that begins with #! as root, at the end of the first
boot: https://man.freebsd.org/cgi/man.cgi?query=nuageinit. nuageinit reads no vendor-data and reports no result.
So our script runs the user's, authorizes the store's key, keeps later boots from doing this again, reports the
result, and powers off.
"""

from __future__ import annotations

import re
import shlex

#: The first serial line, by operating system.
LINES = {"freebsd": "/dev/ttyu0", "openbsd": "/dev/tty00"}

#: How later boots are kept from doing the work of the first.
_SWITCH_OFF = {
    "freebsd": "rm -f /firstboot /firstboot-reboot; sysrc nuageinit_enable=NO",
    "openbsd": "mkdir -p /etc/cloud; : >/etc/cloud/cloud-init.disabled",
}

_MARK = "obuild-first-boot:"
_REPORT = re.compile(rf"^{_MARK} (.*?)\r?$", re.MULTILINE)

_SCRIPT = """\
#!/bin/sh
login={login}
own=/var/tmp/obuild-first-boot
printf %s {script} >"$own"
chmod 700 "$own"
if "$own" >"$own.log" 2>&1; then told=ok; else told="user-data failed with exit status $?"; fi
entry=$(awk -F: -v login="$login" '$1 == login {{ print $3 ":" $4 " " $6 }}' /etc/passwd)
home=${{entry#* }}
if [ -n "$entry" ]; then
    mkdir -p "$home/.ssh"
    echo {key} >>"$home/.ssh/authorized_keys"
    chmod 700 "$home/.ssh"
    chmod 600 "$home/.ssh/authorized_keys"
    chown -R "${{entry%% *}}" "$home/.ssh"
elif [ "$told" = ok ]; then
    told="there is no user $login, the login of the recipe's card"
fi
{switch_off}
{{
    echo
    tail -n 30 "$own.log"
    echo "{mark} $told"
}} >{line}
rm -f "$own" "$own.log"
shutdown -p now
"""


def user_data(os: str, login: str, public_key: str, script: str) -> str:
    """Return the user-data for the seed. `script` is the user's, and begins with #!."""
    return _SCRIPT.format(
        login=shlex.quote(login),
        script=shlex.quote(script),
        key=shlex.quote(public_key.strip()),
        switch_off=_SWITCH_OFF[os],
        mark=_MARK,
        line=LINES[os],
    )


def problem(console: str) -> str:
    """Return what a guest's console says went wrong; "" if nothing did."""
    told = _REPORT.findall(console)
    if not told:
        return "the guest powered off before its first boot was done"
    return "" if told[-1] == "ok" else str(told[-1])
