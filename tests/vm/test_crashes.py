"""tests/store/test_crashes.py with real guests. It takes long: `make test-crash`."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
from pathlib import Path

import pytest

from obuild.host import failpoints
from tests.support.program import Program, machines
from tests.support.victim import Victim

pytestmark = [pytest.mark.vm, pytest.mark.crash]

SPEC = """
((from micro)
 (run (cache (c (target /c))) (shell "date +%s.%N >>/c/times; sha256sum /c/times; echo {word} >/made"))
 (copy (src file) (dst /copied))
 (run (shell "cat /made /copied; rm -rf /usr/share/doc; sync; echo {word} >/made")))
"""

#: One step, for tests with a single kill.
SHORT = '((from micro) (run (cache (c (target /c))) (shell "echo {word} >>/c/words; cat /c/words")))'

#: The failpoints of other commands, and of making a base.
MADE = ("base", "flat", "remove", "make", "download", "export", "publish", "native")

#: The failpoints that a build with one cache and no deep chain passes, once the cache has content.
POINTS = [point for point in failpoints.POINTS if point.partition(".")[0] not in MADE]

#: Which of these a machine passes that is booted, and which one that is saved and resumed.
BOOTED = ("machine.started", "machine.ready")
SAVED = ("warm.keeping", "warm.kept", "machine.resumed")

#: Failpoints, and how the machines of the build before and of the killed build are made: a build after one that
#: saved none boots a machine, saves and resumes it; the next ones only resume it.
CASES = [
    *(("boot", "boot", point) for point in (*BOOTED, "machine.off")),
    *(("boot", "warm", point) for point in (*BOOTED, *SAVED)),
    *(("warm", "warm", point) for point in POINTS if point not in (*BOOTED, "machine.off")),
]


class Real(Victim):
    """The real program."""

    module = "obuild"

    def build(self, word: str, *, kill_at: str = "", spec: str = SPEC, vm: str = "auto") -> int:
        self.words["SPEC"].write_text(spec.format(word=word))
        return self.run("build", f"--vm={vm}", "-f", "SPEC", "SOURCE", kill_at=kill_at)

    def wait_for_machines(self) -> None:
        """Wait until QEMU has ended: the kernel kills it with the process that started it."""
        for pid in machines(self.root):
            try:
                handle = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            assert select.select([handle], [], [], 30)[0], "QEMU lives on"
            os.close(handle)
        assert machines(self.root) == []


@pytest.fixture
def real(fresh: Program, source: Path, tmp_path: Path) -> Real:
    (source / "file").write_text("copied")
    return Real(fresh.store, {"SPEC": tmp_path / "test.spec", "SOURCE": source})


@pytest.mark.parametrize(("before", "vm", "point"), CASES)
def test_killed_at_a_point(real: Real, before: str, vm: str, point: str) -> None:
    assert real.build("zero", spec=SHORT, vm=before) == 0
    assert real.build("one", kill_at=point, spec=SHORT, vm=vm) == -signal.SIGKILL, f"{point} is never reached"
    real.wait_for_machines()
    real.check()
    assert real.build("one", spec=SHORT, vm=vm) == 0
    real.check()


def test_killed_at_any_moment(real: Real) -> None:
    """OBUILD_TEST_KILLS times, default 200; sometimes with two builds at once, a gc, or a clean."""
    count = int(os.environ.get("OBUILD_TEST_KILLS", "200"))
    chance = random.Random(count)
    ended = 0
    for number in range(count):
        words = [f"w{number // 3}", f"w{number // 3}"][: chance.choice([1, 1, 2])]
        children: list[subprocess.Popen[str]] = []
        for word in words:
            real.words["SPEC"].write_text(SPEC.format(word=word))
            children.append(real.start("build", "-f", "SPEC", "SOURCE"))
        other = chance.choice([(), (), ("prune", "--keep-bytes=300M"), ("clean",)])
        if other:
            children.append(real.start(*other))
        for child in children:
            try:
                child.wait(chance.uniform(0.0, 14.0) / len(children))
                ended += 1
            except subprocess.TimeoutExpired:
                child.kill()
        for child in children:
            _, errors = child.communicate()
            assert "Traceback" not in errors
        real.wait_for_machines()
        real.check()
    assert ended < count * 3 // 4, "most were to be killed"
    assert real.build("last") == 0
    real.check()
