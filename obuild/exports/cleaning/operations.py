"""The operations of `--sysprep`, and how some of them are picked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from obuild.bases.table import nearest
from obuild.errors import UsageError


class Operation(NamedTuple):
    """One thing that is cleaned. linux.sh has a function for each."""

    name: str
    what: str
    default: bool = True


#: In the order in which they run: accounts before logs, which tell about them; free space last.
OPERATIONS = (
    Operation("ssh-hostkeys", "remove the host keys of the SSH server; the first boot makes new ones"),
    Operation("machine-id", "empty /etc/machine-id, and have D-Bus use it; the first boot makes a new one"),
    Operation("random-seed", "remove saved random seeds, and systemd's key for credentials"),
    Operation("root-password", "let no password log in as root"),
    Operation("builder-key", "remove the key that obuild logs in with"),
    Operation("builder-user", "remove the user that obuild logs in as, unless that is root"),
    Operation("account-backups", "remove /etc/passwd-, /etc/shadow- and the like"),
    Operation("cloud-init", "have cloud-init run again, as on a new machine"),
    Operation("package-cache", "remove what package managers have downloaded, and their lists"),
    Operation("histories", "remove histories of shells, editors and database clients"),
    Operation("dhcp-leases", "remove leases, and keys that go with them"),
    Operation("udev-rules", "remove rules that name network cards and disks of this machine"),
    Operation("crash-data", "remove core dumps and crash reports"),
    Operation("mail", "remove mail in the spool"),
    Operation("cron-spool", "remove crontabs of users, and jobs of at"),
    Operation("tmp", "empty /tmp and /var/tmp"),
    Operation("logs", "empty logs, and remove old ones and the journal"),
    Operation("trim", "discard the free space of file systems other than ext"),
    Operation("zero", "fill it with zeros instead, which takes long", default=False),
)

_NAMES = tuple(each.name for each in OPERATIONS)

#: The name that stands for all of them.
ALL = "all"


def pick(text: str, *, keep_user: bool = False) -> tuple[str, ...]:
    """The names of the operations to run: the usual ones, with +NAME and without -NAME of a list with commas.

    `all` is the name of all. UsageError for a name that is not in the table.
    """
    chosen = {each.name for each in OPERATIONS if each.default}
    for word in filter(None, (word.strip() for word in text.split(","))):
        sign, name = (word[0], word[1:]) if word[0] in "+-" else ("+", word)
        if name not in (*_NAMES, ALL):
            raise UsageError(f"--sysprep: there is no operation {name!r}", hint=nearest(name, _NAMES))
        named = set(_NAMES) if name == ALL else {name}
        chosen = chosen | named if sign == "+" else chosen - named
    if keep_user:
        chosen.discard("builder-user")
    return ordered(chosen)


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """These operations in the order in which they run."""
    found = set(names)
    return tuple(name for name in _NAMES if name in found)
