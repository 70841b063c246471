"""The package as a library."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

import obuild
from obuild import __main__
from tests.support import forked
from tests.support.fakes import POWER_OFF, boot_disk


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


def test_a_cached_build_on_a_terminal_does_not_import_rich(tmp_path: Path) -> None:
    """Only what takes longer than a moment is drawn."""
    script = f"""
import sys
sys.argv = ["obuild", "build", "--store=qemu:{tmp_path}/store", "-f", "{tmp_path}/spec", "{tmp_path}"]
from obuild.cli import main
try:
    main.run()
finally:
    print("LOADED", *sys.modules)
"""
    disk = tmp_path / "disk.img"
    disk.write_bytes(boot_disk("", POWER_OFF))
    (tmp_path / "spec").write_text("((from tiny))")
    forked.run(["base", "add", str(disk), "--name=tiny", f"--store=qemu:{tmp_path}/store"])
    build = ["build", f"--store=qemu:{tmp_path}/store", "-f", f"{tmp_path}/spec", str(tmp_path)]
    assert forked.run(build).returncode == 0
    ours, theirs = os.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen:
        env = {**os.environ, "TERM": "xterm"}
        child = subprocess.Popen(
            [sys.executable, "-c", script], stdin=theirs, stdout=theirs, stderr=theirs, env=env
        )
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # nobody has the other end open any more
            while data := screen.read(1 << 16):
                shown += data
        assert child.wait() == 0
    said, _, loaded = shown.decode().partition("LOADED")
    assert "1 step in 0." in said
    assert "all from the cache" in said
    assert "obuild.cli.live.view" in loaded.split()
    assert not {*HEAVY, "rich.console", "rich.text", "obuild.cli.live.drawer"} & set(loaded.split())
