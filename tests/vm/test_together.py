"""Several processes on one store, with real guests."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.program import SAVED, Program, assert_clean

pytestmark = pytest.mark.vm

Spec = Callable[[str], Path]


class Running:
    """A running build. `stdout` and `stderr` are its output so far, and all of it once it has ended."""

    def __init__(self, argv: list[str]) -> None:
        self.child = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.stdout = ""
        self.stderr = ""

    def wait_for(self, line: str, times: int = 1) -> None:
        """Read until the line has been printed this many times in all."""
        assert self.child.stdout is not None
        while self.stdout.splitlines().count(line) < times:
            read = self.child.stdout.readline()
            assert read, f"the build ended: {self.stdout}{self.end().stderr}"
            self.stdout += read

    def end(self) -> Running:
        """Wait until it has ended."""
        rest, self.stderr = self.child.communicate()
        self.stdout += rest
        assert "Traceback" not in self.stderr
        return self


@contextmanager
def started(program: Program, spec: Path, source: Path) -> Iterator[Running]:
    running = Running(program.argv("build", "-f", spec, source))
    try:
        yield running
    finally:
        running.child.kill()
        running.child.communicate()


def test_several_builds_at_once_build_each_step_once(ready: Program, spec: Spec, source: Path) -> None:
    """Three builds of one spec, and one of another with a common beginning, while others look and clean up."""
    text = '(from micro) (run (shell "echo first $(cat /proc/sys/kernel/random/uuid)"))'
    same = spec(f'({text} (run (shell "echo second")))')
    other = source / "other.spec"
    other.write_text(f'({text} (run (shell "echo another")))')
    with ExitStack() as stack:
        builds = [stack.enter_context(started(ready, path, source)) for path in (same, same, same, other)]
        while any(build.child.poll() is None for build in builds):
            for command in ("ls", "prune", "df"):
                ready(command)
        for build in builds:
            assert build.end().child.returncode == 0, build.stderr
    saved = [id for build in builds for id in SAVED.findall(build.stdout)]
    assert len(saved) == len(set(saved)) == 3
    lines = {line for build in builds for line in build.stdout.splitlines() if line.startswith("first ")}
    assert len(lines) == 1  # all have followed the same run
    assert [build.stdout.count("\nsecond\n") for build in builds] == [1, 1, 1, 0]
    assert_clean(ready)
    ready("fsck", "--read-data")


def test_a_waiting_build_takes_over_from_a_killed_one_and_shares_a_failure(
    ready: Program, spec: Spec, source: Path
) -> None:
    path = spec('((from micro) (run (shell "echo started; sleep 8; exit 7")))')
    with ExitStack() as stack:
        first = stack.enter_context(started(ready, path, source))
        first.wait_for("started")
        others = [stack.enter_context(started(ready, path, source)) for _ in range(2)]
        for other in others:
            other.wait_for("started")  # live: the step is still running
        first.child.kill()
        for other in others:
            assert other.end().child.returncode == 1
            assert '"echo started; sleep 8; exit 7" failed with exit status 7' in other.stderr
            assert "that build was interrupted" in other.stdout
            assert other.stdout.splitlines().count("started") == 2
    makers = [other for other in others if "this one builds the step" in other.stdout]
    assert len(makers) == 1
    ready("prune")  # a command that may change the store cleans up
    assert_clean(ready)
