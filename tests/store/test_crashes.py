"""The program is killed at every failpoint, and at random moments: the next command works, nothing is lost.

Everything is real but the guests; tests/vm/test_crashes.py does the same with those.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from obuild.host import failpoints
from obuild.store import fsck
from obuild.store.layers import Store
from tests.support.victim import SAVED, Victim

#: A step with a cache, a build to copy from, and a last step: everything that a build may have to do.
SPEC = """
((build dev ((from tiny) (run (shell "make"))))
 (from tiny)
 (run (cache (c (target /c)) (d (target /d))) (shell "with caches"))
 (copy (from (build dev)) (src /out) (dst /got))
 (run (shell "deep"))
 (run (shell "deeper"))
 (run (shell "last")))
"""

#: The points that only real executors pass; tests/vm tries them.
MACHINE = (
    "machine.started",
    "machine.ready",
    "warm.keeping",
    "warm.kept",
    "machine.resumed",
    "machine.sealed",
    "machine.off",
    "native.mounted",
    "native.running",
    "native.unmounted",
    "native.sealed",
)

BUILD = ("build", "--qemu-accel=tcg", "-f", "SPEC", "SOURCE")
#: The points of making a base from a recipe, which tests/bases/test_interrupted.py tries, and of publishing,
#: pushing and pulling, which tests/exports/targets and tests/remotes do.
ELSEWHERE = ("make.", "download.", "publish.", "push.", "pull.")

TAG = ("build", "--qemu-accel=tcg", "-t", "web", "-f", "SPEC", "SOURCE")
BASE = ("base", "add", "DISK", "--name=tiny", "--force")
CLEAN = ("clean",)
UNTAG = ("tag", "rm", "web")
EXPORT = ("export", "web", "--type=raw", "-o", "OUT", "--force")

#: The command for each kind of point; a build passes all others.
COMMANDS = {"base": BASE, "store": BASE, "remove": CLEAN, "tag": TAG, "untag": UNTAG, "export": EXPORT}


@pytest.fixture
def victim(tmp_path: Path, qcow2_disk: Path) -> Victim:
    (tmp_path / "source").mkdir()
    (tmp_path / "test.spec").write_text(SPEC)
    Store.open(tmp_path / "store")
    words = {
        "SPEC": tmp_path / "test.spec",
        "SOURCE": tmp_path / "source",
        "DISK": qcow2_disk,
        "OUT": tmp_path / "out",
    }
    return Victim(tmp_path / "store", words)


def test_every_point_is_tried() -> None:
    assert set(MACHINE) <= set(failpoints.POINTS)


@pytest.mark.parametrize(
    "point", [point for point in failpoints.POINTS if point not in MACHINE and not point.startswith(ELSEWHERE)]
)
def test_killed_at_a_point(victim: Victim, point: str) -> None:
    kind = {"flat.removed": "remove", "tag.removed": "untag"}.get(point, point.partition(".")[0])
    command = COMMANDS.get(kind, BUILD)
    if kind == "store":
        shutil.rmtree(victim.root)
    if command != BASE:
        assert victim.run(*BASE) == 0
    if command == CLEAN or point == "cache.copied":  # these need layers, or a cache
        assert victim.run(*BUILD) == 0
    if point == "cache.copied":
        assert victim.run(*CLEAN) == 0
    if command == CLEAN or point == "cache.copied":
        victim.saved.clear()
    if command in (UNTAG, EXPORT):
        assert victim.run(*TAG) == 0
    assert victim.run(*command, kill_at=point) == -signal.SIGKILL, f"{point} is never reached"
    if kind != "store":  # else there is no store yet
        victim.check()
    if point in ("tag.writing", "tag.set"):
        assert bool(Store(victim.root).tags.all()) == (point == "tag.set")
    others = {CLEAN: (CLEAN,), UNTAG: (TAG, UNTAG), EXPORT: (EXPORT,)}
    for again in others.get(command, (BASE, command)):
        assert victim.run(*again) == 0
    if command == CLEAN:
        assert Store(victim.root).layers() == []
    victim.check()


def test_killed_while_a_new_store_is_given_its_format(victim: Victim) -> None:
    shutil.rmtree(victim.root)
    assert victim.run(*BASE, kill_at="store.formatting") == -signal.SIGKILL
    assert not (victim.root / "format").exists()
    (left,) = [found.where for found in fsck.check(Store(victim.root)) if found.where.startswith(".format.")]
    victim.check()
    assert not (victim.root / left).exists()
    assert victim.run(*BASE) == 0
    assert (victim.root / "format").read_text() == "1\n"
    victim.check()


@pytest.mark.parametrize("seed", range(int(os.environ.get("OBUILD_TEST_KILLS", "3"))))
def test_killed_at_any_moment(victim: Victim, seed: int) -> None:
    """Two builds, a gc and a clean at once on one store; each is killed at a different moment."""
    chance = random.Random(seed)
    assert victim.run(*BASE) == 0
    other = chance.choice([CLEAN, ("prune", "--older-than=0s"), ("ls",)])
    commands = [BUILD, BUILD, BASE, other]
    children = [victim.start(*command) for command in commands]
    for child in sorted(children, key=lambda _: chance.random()):
        try:
            child.wait(chance.uniform(0.0, 0.8))
        except subprocess.TimeoutExpired:
            child.kill()
    for child in children:
        out, errors = child.communicate()
        assert "Traceback" not in errors
        if other == ("ls",):
            victim.saved |= set(SAVED.findall(out))
    victim.check()
    assert victim.run(*BUILD) == 0
    victim.check()
