"""The spec language: a Stage and its ops; parse, check and print them.

Import from here. The parts are in ops (the values), parser and formatter.
"""

from obuild.spec.formatter import format, format_op
from obuild.spec.ops import (
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
from obuild.spec.parser import check, parse, without_mark

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
