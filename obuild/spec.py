"""The language of specs: a Stage and its ops; parse, check and print them.

The parts are in spec_ops (the values), spec_read and spec_show; this is their front door.
"""

from obuild.spec_ops import (
    Cache,
    Comment,
    Copy,
    Env,
    Op,
    Run,
    Secret,
    Shell,
    Stage,
    UnixUser,
    User,
    WindowsUser,
    Workdir,
)
from obuild.spec_read import check, parse, without_mark
from obuild.spec_show import format, format_op

__all__ = [
    "Cache",
    "Comment",
    "Copy",
    "Env",
    "Op",
    "Run",
    "Secret",
    "Shell",
    "Stage",
    "UnixUser",
    "User",
    "WindowsUser",
    "Workdir",
    "check",
    "format",
    "format_op",
    "parse",
    "without_mark",
]
