"""The package as a library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import obuild


@pytest.mark.parametrize("name", obuild.__all__)
def test_everything_it_offers_is_there(name: str) -> None:
    assert getattr(obuild, name).__name__ == name


def test_what_it_does_not_offer_is_not() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        _ = obuild.nothing


def test_it_loads_nothing_until_it_is_asked() -> None:
    code = "import sys, obuild; print([name for name in sys.modules if name.startswith('obuild.')])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout == b"[]\n"


HEAVY = (
    "paramiko",
    "scp",
    "sqlite_utils",
    "pydantic",
    "tarfile",
    "logging",
    "obuild.bases.recipe",
    "obuild.executors.qemu.machine",
)


def test_a_cached_build_loads_nothing_heavy() -> None:
    """It costs little more than starting Python: bench/overhead.py measures it, this keeps it so."""
    code = "import sys, obuild.cli.main, obuild.builder.engine, obuild.spec; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    assert not set(HEAVY) & set(loaded)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_standard_stream_is_no_file_of_ours(closed: str) -> None:
    """Else a file that is opened first gets its number, and what is written to stderr goes into that file."""
    script = "import os, obuild.host.streams as s; s.prepare(); fd = os.open('/dev/null', 0); exit(fd <= 2)"
    shell = f'"$0" -c "{script}" {closed}'
    assert subprocess.run(["sh", "-c", shell, sys.executable], cwd=Path(__file__).parent.parent).returncode == 0
