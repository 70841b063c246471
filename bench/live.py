"""What the live view costs: beside lines in a file, with scripted guests.

Run it on a quiet machine:  .venv/bin/python -m bench.live [--runs N]

It prints three values, ratios each of medians taken in turns in this one run, and fails if one is over its target:
  a fully cached build of 100 steps: live on a terminal / --progress plain          <= 1.3
  a step that prints 100 MB: live on a terminal / lines into a file                 <= 1.1
  the CPU time that the view takes beside a step that prints a line now and then    <= 2 % of the step's time
"""

from __future__ import annotations

import argparse
import os
import pty
import resource
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from bench.overhead import report
from obuild.store.layers import Store
from tests.support.fakes import POWER_OFF, boot_disk

ROOT = Path(__file__).parent.parent

#: How long the step takes beside which the CPU time is measured, in seconds.
STEP = 20


class Builds:
    """Builds with scripted guests in a store of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store.open(folder / "store")
        (self.store.base_image / "tiny.img").write_bytes(boot_disk("", POWER_OFF))
        self.count = 0

    def new(self, command: str) -> None:
        """Write a spec with one step that was never made."""
        self.count += 1
        self.spec(f'(run (shell "print {self.count}; {command}"))')

    def spec(self, ops: str) -> None:
        (self.folder / "spec").write_text(f"((from tiny) {ops})")

    def live(self) -> tuple[float, float]:
        """Build on a terminal. Return the seconds and the CPU seconds."""
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (40, 120))
        reader = threading.Thread(target=_drain, args=(ours,))
        reader.start()
        try:
            return self._run([], theirs)
        finally:
            os.close(theirs)
            reader.join()
            os.close(ours)

    def lines(self, *options: str) -> tuple[float, float]:
        """Build with stdout in a file. Return the seconds and the CPU seconds."""
        with (self.folder / "out").open("wb") as out:
            return self._run(options, out.fileno())

    def _run(self, options: Sequence[str], out: int) -> tuple[float, float]:
        argv = [sys.executable, "-m", "tests.support.scripted", "build", f"--store=qemu:{self.store.root}"]
        argv += ["--qemu-accel=tcg", *options, "-f", str(self.folder / "spec"), str(self.folder)]
        env = {**os.environ, "TERM": "xterm", "LANG": "C.UTF-8", "OBUILD_SIGNS": str(self.folder)}
        before, started = _spent(), time.perf_counter()
        subprocess.run(argv, check=True, stdout=out, cwd=ROOT, env=env)
        return time.perf_counter() - started, _spent() - before


def _spent() -> float:
    """The CPU seconds of all programs that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _drain(fd: int) -> None:
    try:
        while os.read(fd, 1 << 16):
            pass
    except OSError:  # nobody has the other end open any more
        pass


def cached(builds: Builds, runs: int) -> float:
    builds.spec("".join(f'(run (shell "print {number}"))' for number in range(99)))
    builds.lines()
    live, plain = [], []
    for _ in range(runs * 3):
        plain.append(builds.lines("--progress=plain")[0])
        live.append(builds.live()[0])
    return report("100 cached steps, live", "plain", live, plain, 1.3)


def flood(builds: Builds, runs: int) -> float:
    live, file = [], []
    for _ in range(runs):
        builds.new("flood 100000000")
        file.append(builds.lines()[0])
        builds.new("flood 100000000")
        live.append(builds.live()[0])
    return report("a step that prints 100 MB, live", "into a file", live, file, 1.1)


def busy(builds: Builds) -> float:
    prints = "; ".join(["pause 0.1; print a line of output"] * (STEP * 10))
    builds.new(prints)
    without = builds.lines()[1]
    builds.new(prints)
    seconds, cpu = builds.live()
    share = (cpu - without) / seconds
    print(f"drawing for {seconds:.0f} s takes {share:.1%} of a CPU (target 2 %)")
    return share / 0.02


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory(prefix="obuild-bench-") as folder:
        builds = Builds(Path(folder))
        worst = max(cached(builds, runs), flood(builds, runs), busy(builds))
    sys.exit(0 if worst <= 1 else "over the target")


if __name__ == "__main__":
    main()
