"""Our part of the seed, which has the guest report cloud-init's result, and the reader of that report.

A power-off proves nothing: cloud-init also powers off after it has failed. So our vendor-data, which leaves the
user's user-data alone, installs a unit that systemd stops after cloud-init's last stage, whatever began the
shutdown. The unit authorizes the store's key, switches cloud-init off for later boots, and sends cloud-init's own
result through a port of the machine. Without systemd, a process waits for the last stage to end.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from typing import Any

from obuild.host.qemu_img import KEY_BLOCK

#: The name of the port in the guest.
PORT = "org.obuild.verdict"

#: How much of cloud-init's output is sent, in bytes.
_OUTPUT = 16384

_SCRIPT = """\
#!/bin/sh
login={login}
key={key}
entry=$(awk -F: -v login="$login" '$1 == login {{ print $3 ":" $4; print $6 }}' /etc/passwd)
owner=${{entry%%[[:space:]]*}}
home=${{entry#*[[:space:]]}}
if [ -n "$entry" ]; then
    mkdir -p "$home/.ssh"
    keys=$home/.ssh/authorized_keys
    others=$(grep -sv '^$' "$keys" | grep -vxF "$key")
    printf '%s\\n' ${{others:+"$others"}} "$key" >"$keys"
    left=$(({block} - $(wc -c <"$keys")))  # see key_slot.py
    [ $left -lt 0 ] || head -c $left /dev/zero | tr '\\0' '\\n' >>"$keys"
    chmod 700 "$home/.ssh"
    chmod 600 "$keys"
    chown -R "$owner" "$home/.ssh"
    command -v restorecon >/dev/null && restorecon -R "$home/.ssh"
fi
mkdir -p /etc/cloud
: >/etc/cloud/cloud-init.disabled
for port in /sys/class/virtio-ports/*; do
    read -r name <"$port/name" && [ "$name" = {port} ] && device=/dev/${{port##*/}}
done
{{
    echo "== login"
    echo "${{entry:+found}}"
    echo "== result"
    cat /run/cloud-init/result.json
    echo
    echo "== status"
    cat /run/cloud-init/status.json
    echo
    echo "== output"
    tail -c {output} /var/log/cloud-init-output.log
    echo
    echo "== end"
}} >"$device" 2>/dev/null
sync
"""

_BOOTHOOK = """\
#cloud-boothook
#!/bin/sh
mkdir -p /run/obuild
cat >/run/obuild/report <<'END_OF_REPORT'
{script}END_OF_REPORT
chmod 755 /run/obuild/report
if [ -d /run/systemd/system ]; then
    cat >/run/systemd/system/obuild-report.service <<'END_OF_UNIT'
[Unit]
Description=Tell obuild how cloud-init ended
DefaultDependencies=no
RequiresMountsFor=/etc /home /root /var/log
Before=cloud-final.service shutdown.target
Conflicts=shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
ExecStop=/run/obuild/report
TimeoutStopSec=300
END_OF_UNIT
    systemctl daemon-reload
    systemctl start --no-block obuild-report.service
else
    (
        until [ -e /run/cloud-init/result.json ]; do sleep 1; done
        /run/obuild/report
        : >/run/obuild/reported
    ) </dev/null >/dev/null 2>&1 &
fi
"""

#: Skip slow, useless work at the first boot, and power off. The user's own settings take precedence.
_CONFIG = """\
#cloud-config
ssh_genkeytypes: [ed25519]
ssh: {emit_keys_to_console: false}
no_ssh_fingerprints: true
power_state: {mode: poweroff, message: obuild, timeout: 300, condition: true}
"""

_BOUNDARY = "==obuild=="


def vendor_data(login: str, public_key: str) -> str:
    """Return our part of the seed, a multipart message. It authorizes the key for `login` and checks that user."""
    script = _SCRIPT.format(
        login=shlex.quote(login), key=shlex.quote(public_key.strip()), block=KEY_BLOCK, port=PORT, output=_OUTPUT
    )
    parts = [("cloud-config", _CONFIG), ("cloud-boothook", _BOOTHOOK.format(script=script))]
    lines = [f'Content-Type: multipart/mixed; boundary="{_BOUNDARY}"', "MIME-Version: 1.0", ""]
    for kind, text in parts:
        lines += [f"--{_BOUNDARY}", f'Content-Type: text/{kind}; charset="us-ascii"', "", text]
    return "\n".join([*lines, f"--{_BOUNDARY}--", ""])


@dataclass(frozen=True, slots=True)
class Verdict:
    """The guest's report: `told` is whether it is complete; `notes` are warnings, not reasons to fail."""

    told: bool
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    output: str


def read(text: str, login: str) -> Verdict:
    """Read what came through the port. The guest may have sent anything."""
    found = {name: body.strip("\n") for name, body in re.findall(r"^== (\w+)\n(.*?)(?=^== )", text, re.M | re.S)}
    if not re.search(r"^== end$", text, re.M):
        return Verdict(False, (), (), found.get("output", ""))
    result, status = _version_1(found.get("result", "")), _version_1(found.get("status", ""))
    problems = [] if found.get("login") else [f"there is no user {login!r}, the login of the recipe's card"]
    if result:
        problems += _texts(result.get("errors"))
    else:  # a command powered the guest off before the last stage ended, so only the stages' own results exist
        stages = [each for each in status.values() if isinstance(each, dict)]
        problems += [problem for each in stages for problem in _texts(each.get("errors"))]
        final = status.get("modules-final")
        if not isinstance(final, dict) or not final.get("start"):
            problems.append("cloud-init did not get to its last stage")
    recoverable = status.get("recoverable_errors")
    kinds = list(recoverable.values()) if isinstance(recoverable, dict) else []
    notes = [note for texts in kinds for note in _texts(texts)]
    return Verdict(True, tuple(problems), tuple(notes), found.get("output", ""))


def _version_1(text: str) -> dict[str, Any]:
    try:
        table = json.loads(text)["v1"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return table if isinstance(table, dict) else {}


def _texts(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []
