"""Base images whose making is interrupted: nothing is left but what was downloaded and verified."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from obuild.host import failpoints
from obuild.store import fsck
from obuild.store.layers import Store
from tests.support.debian_archive import DebianArchive

#: The points that making an image passes, in that order.
POINTS = [point for point in failpoints.POINTS if point.startswith(("make.", "download.", "base."))]

#: The program, with another keyring than Debian's.
PROGRAM = """\
import sys
from pathlib import Path
from obuild.__main__ import main
from obuild.bases.scratch import apt

apt.KEYRING = Path(sys.argv.pop(1))
main()
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path, archive: DebianArchive) -> Start:
    """Start to make an image of packages of our own, pinning them."""

    def start(**env: str) -> subprocess.Popen[str]:
        make = ["base", "make", str(tmp_path / "mine.toml"), "--lock", f"--store=qemu:{tmp_path}/store"]
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(archive.keys / "keyring.gpg"), *make],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **env},
        )

    return start


def left(store: Store) -> tuple[list[str], list[str], bool]:
    """The image's files, downloads that nobody has verified, and whether there is a lock file."""
    images = sorted(path.name for path in store.base_image.iterdir())
    parts = [name for name in store.downloads.names() if name.endswith(".part")]
    return images, parts, (store.root.parent / "mine.lock").exists()


def test_an_image_that_is_interrupted_leaves_verified_downloads_alone(tmp_path: Path, start: Start) -> None:
    whole = ["mine.made", "mine.qcow2", "mine.toml"]
    for point in POINTS:
        out, _ = (killed := start(OBUILD_KILL_AT=point)).communicate()
        assert killed.returncode == -signal.SIGKILL, f"{point} is never reached: {out}"
        store = Store.open(tmp_path / "store")  # which sweeps
        images, parts, locked = left(store)
        assert images == (whole if point == "base.placed" else []), point
        assert bool(parts) == (point == "download.keeping"), "what is not verified is resumed"
        assert locked == (POINTS.index(point) > POINTS.index("make.locking")), point
        for finding in fsck.check(store, read_data=True):
            assert finding.what in ("a lock file that nobody holds", "a file that was never finished"), point
    out, _ = (last := start()).communicate()
    assert last.returncode == 0, out
    assert left(Store(tmp_path / "store")) == (whole, [], True)
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".mine")]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's namespaces end with us")
def test_nothing_goes_on_when_it_is_killed_while_packages_are_installed(tmp_path: Path, start: Start) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with (tmp_path / "mine.toml").open("a") as recipe:
        recipe.write(f"script = 'cat \"{pipe}\"'\n")
    process = start()
    writer = os.open(pipe, os.O_WRONLY)  # returns when the recipe's script reads
    try:
        process.kill()
        process.communicate()
        poll = select.poll()
        poll.register(writer, 0)
        assert poll.poll(60_000), "the script still runs"
    finally:
        os.close(writer)
    store = Store.open(tmp_path / "store")
    assert left(store) == ([], [], False)


def test_an_interrupt_leaves_nothing(tmp_path: Path, start: Start) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with (tmp_path / "mine.toml").open("a") as recipe:
        recipe.write(f"script = 'cat \"{pipe}\"'\n")
    process = start()
    writer = os.open(pipe, os.O_WRONLY)
    try:
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate()
    finally:
        os.close(writer)
    assert (process.returncode, "Traceback" in out) == (130, False)
    assert left(Store(tmp_path / "store")) == ([], [], False), "at once, and not when the store is opened again"
