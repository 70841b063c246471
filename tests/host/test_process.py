"""Other programs: their output, how they end, and that none outlives us."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from obuild.errors import Cancelled, ProcessError, UsageError
from obuild.host import process
from obuild.host.tail import KEPT
from tests.support.fakes import other_process

needs_setpriv = pytest.mark.skipif(not shutil.which("setpriv"), reason="needs setpriv")

SPAWN = """
import sys
from obuild.host import process
from obuild.host.tail import KEPT
process.spawn(["sh", "-c", "echo ready; exec sleep 600"], stderr=sys.stdout.buffer)
sys.stdin.read()
"""


def test_run_returns_what_the_program_printed() -> None:
    assert process.run(["printf", "a\\0b"]) == b"a\0b"


def test_run_gives_input_folder_and_additional_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OURS", "1")
    said = process.run(["sh", "-c", "cat; pwd; echo $OURS$NEW"], input=b"in\n", cwd=tmp_path, env={"NEW": "2"})
    assert said.decode() == f"in\n{tmp_path}\n12\n"


def test_run_without_input_reads_an_empty_stdin() -> None:
    assert process.run(["cat"]) == b""


def test_run_tells_how_much_the_program_has_read(tmp_path: Path) -> None:
    """It reads from the pipe until we have heard of the file."""
    (tmp_path / "file").write_bytes(bytes(1 << 20))
    os.mkfifo(tmp_path / "pipe")
    heard: list[int] = []

    def progress(done: int) -> None:
        heard.append(done)
        if done >= 1 << 20 and max(heard[:-1], default=0) < 1 << 20:
            (tmp_path / "pipe").write_bytes(b"end")

    said = process.run(["cat", "file", "pipe"], cwd=tmp_path, progress=progress)
    assert said == bytes(1 << 20) + b"end"
    assert heard == sorted(heard)
    assert process.run(["cat"], input=b"short", progress=heard.append) == b"short"


def test_a_failure_quotes_the_command_its_status_and_its_stderr() -> None:
    with pytest.raises(ProcessError) as caught:
        process.run(["sh", "-c", "echo 'so sad' >&2; exit 3"])
    assert "sh -c 'echo '\"'\"'so sad'\"'\"' >&2; exit 3'" in caught.value.message
    assert "exit status 3" in caught.value.message
    assert caught.value.message.endswith("so sad")


def test_a_failure_shows_only_the_end_of_a_long_stderr() -> None:
    with pytest.raises(ProcessError) as caught:
        process.run(["sh", "-c", "printf '%09999d' 1 >&2; exit 1"])
    assert len(caught.value.message) < KEPT + 200
    assert caught.value.message.endswith("0001")


def test_a_failure_by_signal_names_the_signal() -> None:
    with pytest.raises(ProcessError, match="killed by signal 9"):
        process.run(["sh", "-c", "kill -9 $$"])


def test_other_exit_statuses_can_be_accepted() -> None:
    assert process.run(["sh", "-c", "echo fine; exit 3"], ok=(0, 3)) == b"fine\n"


@pytest.mark.parametrize("program", ["qemu-img", "mke2fs"])
def test_the_error_for_a_missing_program_names_its_package(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr(shutil, "which", lambda program, path: None)
    with pytest.raises(UsageError, match=program) as caught:
        process.run([program])
    assert caught.value.hint == f"apt install {process.PACKAGES[program]}"


def test_programs_in_system_folders_are_found_off_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    program = next(path.name for path in sorted(Path("/usr/sbin").iterdir()) if os.access(path, os.X_OK))
    assert Path(process.require(program)).name == program


def test_every_command_is_logged_as_a_shell_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "obuild"):
        process.run(["echo", "two words", Path("/a b")])
    assert caplog.messages == ["Exec echo 'two words' '/a b'"]


def test_programs_run_in_a_session_of_their_own() -> None:
    assert int(process.run(["sh", "-c", "ps -o sid= -p $$ || cut -d' ' -f6 /proc/$$/stat"])) != os.getsid(0)


def test_an_interrupted_program_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def interrupted(child: subprocess.Popen[bytes], input: bytes | None) -> None:
        started.append(child)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        process.run(["sleep", "600"])
    assert started[0].returncode == -9


@needs_setpriv
def test_a_spawned_program_writes_to_the_given_file() -> None:
    with tempfile.TemporaryFile() as said:
        child = process.spawn(["sh", "-c", "echo out; echo err >&2"], stderr=said)
        assert child.wait() == 0
        said.seek(0)
        assert said.read() == b"out\nerr\n"


@needs_setpriv
def test_a_spawned_program_is_killed_with_the_thread_that_started_it() -> None:
    spawned: list[subprocess.Popen[bytes]] = []
    reading, writing = os.pipe()

    def start() -> None:
        with os.fdopen(writing, "wb") as said:
            spawned.append(process.spawn(["sh", "-c", "echo running; exec sleep 600"], stderr=said))
        os.read(reading, 1)  # by now the kernel knows the program's parent thread

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    os.close(reading)
    assert spawned[0].wait() == -9


@needs_setpriv
def test_a_spawned_program_does_not_outlive_a_killed_process() -> None:
    with other_process(SPAWN) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        parent.kill()
        # its stdout is ours too: the end of the file comes when the last of them has died
        assert parent.stdout.read() == ""


@needs_setpriv
def test_a_cancelled_scope_kills_only_its_own_programs_and_starts_no_more(tmp_path: Path) -> None:
    one, other = process.CancelScope(), process.CancelScope()
    with (tmp_path / "said").open("wb") as said:
        with (
            one.spawned(["sleep", "600"], stderr=said) as mine,
            other.spawned(["sleep", "600"], stderr=said) as theirs,
        ):
            thread = threading.Thread(target=one.cancel)
            thread.start()
            thread.join()
            assert mine.wait() == -9
            assert theirs.poll() is None
            assert (one.cancelled, other.cancelled) == (True, False)
            with pytest.raises(Cancelled), one.spawned(["sleep", "600"], stderr=said):
                pass
        assert theirs.returncode == -9  # and was waited for


@needs_setpriv
def test_a_program_that_starts_while_its_scope_is_cancelled_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scope = process.CancelScope()
    spawn = process.spawn

    def cancelled_just_before(argv: Sequence[process.Arg], **how: Any) -> subprocess.Popen[bytes]:
        scope.cancel()
        return spawn(argv, **how)

    monkeypatch.setattr(process, "spawn", cancelled_just_before)
    with (tmp_path / "said").open("wb") as said, scope.spawned(["sleep", "600"], stderr=said) as child:
        assert child.wait() == -9


def test_endings_are_put_in_words() -> None:
    assert process.ending(-11) == "was killed by signal 11"
    assert process.ending(2) == "failed with exit status 2"
