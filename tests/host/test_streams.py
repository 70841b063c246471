"""The program with its stdin, stdout and stderr closed, full, or without a reader. No guest boots."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from obuild.store.layers import Store

#: Commands that all have something to print. STORE stands for the --store option; FILE and SPEC exist.
COMMANDS = (
    "--help",
    "--version",
    "ls STORE",
    "ls --json STORE",
    "df STORE",
    "fsck STORE",
    "plan -f SPEC STORE .",
    "build -f SPEC STORE .",
    "build -f SPEC --progress=json STORE .",
    "base add FILE --name again --force STORE",
    "cache ls STORE",
    "clean STORE",
    "fmt -f SPEC",
    "fmt",
    "dockerfile -f SPEC",
    "logs none STORE",
    "run none STORE -- true",
    "cp none:/x - STORE",
)
#: These print nothing on stdout, or accept what is on stdin.
SILENT = ("logs", "run", "cp", "cache ls", "fmt")


@pytest.fixture
def place(tmp_path: Path, qcow2_disk: Path) -> Path:
    """A folder with a store, a base image `there` in it, and a spec."""
    Store.open(tmp_path / "store")
    (tmp_path / "store/base-image/there.qcow2").write_bytes(qcow2_disk.read_bytes())
    (tmp_path / "spec").write_text("((from there))")
    assert run(tmp_path, "build -f SPEC STORE .", "").returncode == 0
    return tmp_path


def run(place: Path, command: str, how: str) -> subprocess.CompletedProcess[str]:
    words = {"STORE": f"--store=qemu:{place / 'store'}", "FILE": f"{place}/store/base-image/there.qcow2"}
    words |= {"SPEC": str(place / "spec")}
    argv = [sys.executable, "-m", "obuild", *(words.get(word, word) for word in command.split())]
    line = '"$@"; echo "$?" >status'
    line = f"{{ {line}; }} {how}" if "|" in how else line.replace(";", f" {how};")
    done = subprocess.run(
        ["sh", "-c", line, "sh", *argv],
        capture_output=True,
        text=True,
        input="",
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=place,
    )
    done.returncode = int((place / "status").read_text())
    assert "Traceback" not in done.stderr, done.stderr
    assert "Exception ignored" not in done.stderr, done.stderr
    return done


def sound(place: Path) -> bool:
    """Whether the store is sound: no output went into one of its files."""
    return run(place, "fsck --repair STORE", "").returncode == 0 and run(place, "fsck STORE", "").returncode == 0


def status(command: str) -> int:
    """A command's exit status if nothing is wrong with its streams."""
    return 2 if command == "fmt" or " none" in command else 0


@pytest.mark.parametrize(
    ("how", "commands"),
    [("<&-", COMMANDS[-4:]), (">&-", COMMANDS), ("2>&-", COMMANDS[-4:]), ("<&- >&- 2>&-", COMMANDS)],
)
def test_a_closed_stream_acts_like_dev_null(place: Path, how: str, commands: tuple[str, ...]) -> None:
    for command in commands:
        assert run(place, command, how).returncode == status(command), command
    assert sound(place)


def test_a_failed_write_to_stdout_is_not_blamed_on_the_store(place: Path) -> None:
    for command in COMMANDS:
        done = run(place, command, ">/dev/full")
        if not command.startswith(SILENT):
            assert done.stderr == "obuild: cannot write to stdout: No space left on device\n", command
            assert done.returncode == 1, command
    assert sound(place)


def test_a_failed_write_to_stderr_does_not_change_the_exit_status(place: Path) -> None:
    for command in COMMANDS:
        assert run(place, command, "2>/dev/full").returncode == status(command), command


def test_a_reader_that_goes_away_ends_the_command_quietly(place: Path) -> None:
    for command in COMMANDS:
        done = run(place, command, "| head -c0")
        assert done.stderr == "" or command.startswith(SILENT), command
        assert done.returncode in (0, 1, 2), command
    assert sound(place)
