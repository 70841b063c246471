"""Locks: one holder, in this process or another, and none once the holder has died."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from obuild.host import locks
from obuild.host.locks import file_lock, folder_lock
from tests.support.fakes import other_process

HOLD = """
import sys
from pathlib import Path
from obuild.host.locks import file_lock, folder_lock
with {lock}:
    print("held", flush=True)
    sys.stdin.read()
"""

COUNT = """
import sys
from pathlib import Path
from obuild.host.locks import file_lock
lock, counter = Path(sys.argv[1]), Path(sys.argv[2])
for _ in range(50):
    with file_lock(lock):
        counter.write_text(str(int(counter.read_text()) + 1))
"""


def test_a_file_lock_is_a_file_only_while_it_is_held(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with file_lock(path) as held:
        assert held
        assert path.exists()
    assert not path.exists()


def test_a_file_lock_is_released_when_the_block_raises(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with pytest.raises(KeyError), file_lock(path):
        raise KeyError
    with file_lock(path, wait=False) as held:
        assert held


def test_two_holders_in_one_process_exclude_each_other(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with file_lock(path), file_lock(path, wait=False) as second:
        assert not second
    with folder_lock(tmp_path), folder_lock(tmp_path, wait=False) as second:
        assert not second


def test_a_refused_lock_does_not_remove_the_holders_file(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    with file_lock(path):
        with file_lock(path, wait=False):
            pass
        assert path.exists()


@pytest.mark.parametrize("lock", ["file_lock(Path({path!r}))", "folder_lock(Path({folder!r}))"])
def test_the_lock_excludes_other_processes_until_the_holder_dies(tmp_path: Path, lock: str) -> None:
    path = tmp_path / "a.lock"
    code = HOLD.format(lock=lock.format(path=str(path), folder=str(tmp_path)))

    def free() -> bool:
        with file_lock(path, wait=False) as file, folder_lock(tmp_path, wait=False) as folder:
            return file and folder

    with other_process(code) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert not free()
        holder.kill()
        holder.wait()
        assert free()


def test_a_waiter_gets_the_lock_after_the_holder(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    order = []

    def second() -> None:
        with file_lock(path):
            order.append("second")

    thread = threading.Thread(target=second)
    with file_lock(path):
        thread.start()
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_processes_that_share_a_counter_lose_no_increment(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    argv = [sys.executable, "-c", COUNT, str(tmp_path / "lock"), str(counter)]
    for child in [subprocess.Popen(argv) for _ in range(4)]:
        assert child.wait() == 0
    assert counter.read_text() == "200"


def test_a_lock_on_a_file_that_was_removed_meanwhile_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The previous holder removes the file as we lock it: we must lock the one that is there now."""
    path = tmp_path / "a.lock"
    flock = locks._flock

    def slow(fd: int, how: int, *, wait: bool) -> bool:
        monkeypatch.setattr(locks, "_flock", flock)
        held = flock(fd, how, wait=wait)
        path.unlink()
        return held

    monkeypatch.setattr(locks, "_flock", slow)
    with file_lock(path) as held:
        assert held
        fd = os.open(path, os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(fd)


def test_shared_folder_locks_exclude_only_the_exclusive_one(tmp_path: Path) -> None:
    with folder_lock(tmp_path, shared=True) as one, folder_lock(tmp_path, shared=True, wait=False) as two:
        assert one
        assert two
        with folder_lock(tmp_path, wait=False) as exclusive:
            assert not exclusive
    with folder_lock(tmp_path, wait=False) as exclusive:
        assert exclusive


def test_a_folder_that_is_gone_cannot_be_locked(tmp_path: Path) -> None:
    with folder_lock(tmp_path / "none") as held:
        assert not held


def test_a_folder_that_was_moved_away_while_we_waited_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    flock = locks._flock

    def slow(fd: int, how: int, *, wait: bool) -> bool:
        folder.rename(tmp_path / "away")
        return flock(fd, how, wait=wait)

    monkeypatch.setattr(locks, "_flock", slow)
    with folder_lock(folder, shared=True) as held:
        assert not held
