"""The package as a library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import obuild
from obuild import __main__


@pytest.mark.parametrize("name", obuild.__all__)
def test_every_public_name_exists(name: str) -> None:
    assert getattr(obuild, name).__name__ == name


def test_other_names_do_not_exist() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        _ = obuild.nothing


def test_importing_the_package_loads_nothing_else() -> None:
    code = "import sys, obuild; print([name for name in sys.modules if name.startswith('obuild.')])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout == b"[]\n"


HEAVY = (
    "paramiko",
    "scp",
    "sqlite3",
    "sqlite_utils",
    "html",
    "obuild.plan.diff",
    "pydantic",
    "tarfile",
    "logging",
    "httpx",
    "distributed",
    "obuild.bases.recipe",
    "obuild.executors.qemu.machine",
)


def test_a_cached_build_loads_nothing_heavy() -> None:
    """It costs little more than starting Python: bench/overhead.py measures that, this test keeps it so."""
    modules = ("cli.main", "builder.engine", "builder.recorder", "spec")
    code = f"import sys, {', '.join(f'obuild.{name}' for name in modules)}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    assert not set(HEAVY) & set(loaded)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_standard_stream_is_not_reused_for_a_file(closed: str) -> None:
    """Else the first file to be opened gets its number, and text for stderr goes into that file."""
    script = "import os, obuild.host.streams as s; s.prepare(); fd = os.open('/dev/null', 0); exit(fd <= 2)"
    shell = f'"$0" -c "{script}" {closed}'
    assert subprocess.run(["sh", "-c", shell, sys.executable], cwd=Path(__file__).parent.parent).returncode == 0


def test_an_interrupt_during_an_import_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> None:
        raise RuntimeError("Error calling __set_name__ on a descriptor") from KeyboardInterrupt()

    monkeypatch.setattr("obuild.cli.main.run", run)
    monkeypatch.setattr("obuild.__main__.streams.prepare", lambda: None)
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "obuild: interrupted\n"
