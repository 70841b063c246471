"""Build one spec on farms of several sizes, and see how much of its workers a farm uses.

Run it on a quiet machine:  .venv/bin/python -m bench.farm [--steps N] [--seconds S] [--chain N] [--workers N…]

The steps sleep, in stages that do not need each other. All else is real: a scheduler with TLS, workers with stores
of their own, layers that travel through a folder. All share the CPUs of this computer, and CPU times are printed:
the hosts of a real farm would have theirs to themselves.

The efficiency with N workers is the time that one worker takes, divided by N times what N workers take. If the
first farm has several workers, it is compared with that.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tests.support import farm as farms
from tests.support.farm import Farm, saved, scheduler

#: Of the time that one worker takes, with eight.
TARGET = 0.8


class Result(NamedTuple):
    """Seconds: in all, and of the CPU for each step."""

    workers: int
    passed: float
    scheduler: float
    worker: float

    def efficiency(self, first: Result) -> float:
        return first.passed * first.workers / (self.workers * self.passed)


def cpu(pids: Iterable[int]) -> float:
    """The CPU time of processes and of their children that have ended, in seconds."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def spec(steps: int, chain: int, seconds: float) -> str:
    """Stages with `chain` steps each, as many as it takes."""
    stages = []
    for stage in range(steps // chain):
        ops = " ".join(f'(run (shell "nap {seconds} {stage} {step}"))' for step in range(chain))
        stages.append(f'(build "s{stage}" ((from tiny) {ops}))')
    return f"({' '.join(stages)} (from tiny))"


def measure(folder: Path, count: int, text: str, steps: int) -> Result:
    folder.mkdir()
    with scheduler(folder) as (farm, running):
        workers = [worker.pid for worker in farm.workers(count)]
        warm_up(farm)
        before = cpu([running.pid]), cpu(workers)
        began = time.monotonic()
        said = farm.build(text).end()
        passed = time.monotonic() - began
        after = cpu([running.pid]), cpu(workers)
        assert len(saved(said)) == steps, said
    return Result(count, passed, (after[0] - before[0]) / steps, (after[1] - before[1]) / steps)


def warm_up(farm: Farm) -> None:
    """Import the base, and let a worker look for KVM."""
    farm.build('(run (shell "nap 0 first"))').end()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--chain", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    options = parser.parse_args()
    farms.PATIENCE, farms.LIMIT = 3600.0, 3600
    text = spec(options.steps, options.chain, options.seconds)
    results = []
    with tempfile.TemporaryDirectory(prefix="bench-farm-") as folder:
        for count in options.workers:
            results.append(measure(Path(folder) / str(count), count, text, options.steps))
            result, first = results[-1], results[0]
            efficiency = result.efficiency(first)
            print(
                f"{count} workers: {result.passed:6.1f} s, efficiency {efficiency:.2f}; CPU for each step: "
                f"scheduler {result.scheduler * 1000:.0f} ms, worker {result.worker * 1000:.0f} ms",
                flush=True,
            )
    last, first = results[-1], results[0]
    if last.workers == 8 and last.efficiency(first) < TARGET:
        sys.exit(f"the efficiency with 8 workers is less than {TARGET}")


if __name__ == "__main__":
    main()
