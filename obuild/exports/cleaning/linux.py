"""The script that cleans a Linux system. It runs there as root, in a POSIX shell."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

_SCRIPT = Path(__file__).with_name("linux.sh")


def script(
    operations: Iterable[str], *, login: str, public_key: str, dry_run: bool = False, root: str = ""
) -> str:
    """The text of the script. `login` and `public_key` are the user and the SSH key that obuild has used.

    With `dry_run` it changes nothing, and prints a line `OPERATION TAB WHAT` for each thing that would go. A test
    gives another `root`.
    """
    given = {
        "root": root,
        "dry": "yes" if dry_run else "",
        "login": login,
        # the key itself: its comment does not count
        "public_key": (public_key.split() or ["", ""])[1],
        "operations": " ".join(f"{name}={name.replace('-', '_')}" for name in operations),
        "list": f"{root}.list" if root else "/run/obuild-sysprep",
    }
    lines = [f"{name}={shlex.quote(value)}" for name, value in given.items()]
    return "\n".join([*lines, _SCRIPT.read_text(encoding="ascii")])
