"""The program with its stdin, stdout and stderr closed, full, or with nobody at the other end. No guest boots."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from obuild.store.layers import Store

#: A store in which something is to be said of each: STORE is its option, FILE and SPEC are there.
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
#: These say nothing on stdout, or find nothing wrong with what is on stdin.
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
    """Whether the store is as it should be: nothing was printed into one of its files."""
    return run(place, "fsck --repair STORE", "").returncode == 0 and run(place, "fsck STORE", "").returncode == 0


def status(command: str) -> int:
    """What a command ends with, if all goes well."""
    return 2 if command == "fmt" or " none" in command else 0


@pytest.mark.parametrize("how", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_what_is_closed_is_as_if_it_were_dev_null(place: Path, how: str) -> None:
    for command in COMMANDS:
        assert run(place, command, how).returncode == status(command), command
    assert sound(place)


def test_output_that_cannot_be_written_is_no_fault_of_the_store(place: Path) -> None:
    for command in COMMANDS:
        done = run(place, command, ">/dev/full")
        if not command.startswith(SILENT):
            assert done.stderr == "obuild: cannot write to stdout: No space left on device\n", command
            assert done.returncode == 1, command
    assert sound(place)


def test_complaints_that_cannot_be_written_change_no_status(place: Path) -> None:
    for command in COMMANDS:
        assert run(place, command, "2>/dev/full").returncode == status(command), command


def test_a_reader_who_leaves_ends_the_command_quietly(place: Path) -> None:
    for command in COMMANDS:
        done = run(place, command, "| head -c0")
        assert done.stderr == "" or command.startswith(SILENT), command
        assert done.returncode in (0, 1, 2), command
    assert sound(place)
