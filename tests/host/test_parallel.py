"""Things that are done at once."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from obuild.host import fs, parallel


def test_what_is_done_again_and_again_ends_with_the_block() -> None:
    callers, enough = [], threading.Event()

    def call() -> None:
        callers.append(threading.current_thread())
        if len(callers) == 3:
            enough.set()

    with parallel.again(call, pause=0):
        assert enough.wait(60)
    assert len(set(callers)) == 1
    assert not callers[0].is_alive()


def test_its_first_error_is_raised_at_the_end() -> None:
    failed = threading.Event()

    def fail() -> None:
        failed.set()
        raise OSError(errno.EIO, "broken")

    with pytest.raises(OSError, match="broken"), parallel.again(fail, pause=0):
        assert failed.wait(60)


def test_an_error_of_the_block_comes_first() -> None:
    def fail() -> None:
        raise OSError(errno.EIO, "broken")

    with pytest.raises(ValueError, match="invalid literal"), parallel.again(fail, pause=0):
        int("x")


def test_a_file_is_flushed_while_others_write_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed, seen = threading.Event(), []

    def flush(descriptor: int) -> None:
        seen.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        flushed.set()

    monkeypatch.setattr(os, "fdatasync", flush)
    file = tmp_path / "disk.raw"
    with fs.writing_out(file):
        assert flushed.wait(60)
        file.write_bytes(b"kept")
    assert set(seen) == {file}
    assert file.read_bytes() == b"kept"


def test_a_disk_that_fails_meanwhile_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = threading.Event()

    def fail(descriptor: int) -> None:
        failed.set()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(OSError, match="Input/output error"), fs.writing_out(tmp_path / "disk.raw"):
        assert failed.wait(60)
