"""A file that holds the version of the next image, such as 1.4.2. Publishing counts up its last number."""

from __future__ import annotations

import re
from pathlib import Path

from obuild.errors import UsageError
from obuild.host.fs import replace_text
from obuild.host.regular import read_text

_VERSION = re.compile(r"(v?(?:[0-9]+\.)*)([0-9]+)")


def read(path: Path) -> str:
    """The version in a file. UsageError if there is none."""
    try:
        text = read_text(path, follow=True).strip()
    except OSError as error:
        hint = "write the first version into it, for example 1.0.0"
        raise UsageError(f"cannot read the version in {path}: {error.strerror}", hint=hint) from error
    except ValueError:
        text = ""
    if not _VERSION.fullmatch(text):
        raise UsageError(f"{path} does not hold a version", hint="write it like 1.0.0")
    return text


def count_up(path: Path, version: str) -> str:
    """Write the version after `version` into the file, unless it has changed meanwhile; returns what it holds."""
    if (there := read(path)) != version:
        return there
    found = _VERSION.fullmatch(version)
    assert found, version
    after = f"{found[1]}{int(found[2]) + 1}"
    place = path.resolve()  # a symlink stays one
    replace_text(place, f"{after}\n", mode=place.stat().st_mode & 0o777)
    return after
