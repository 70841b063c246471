"""Run a program that builds, as a user would, and record what it reports and when."""

from __future__ import annotations

import json
import os
import select
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO

#: The longest that a build may take, in seconds; one that takes longer has failed.
LONGEST = 3600.0

#: How many bytes of a failed program's output are shown.
TAIL = 400


class Failed(Exception):
    """A program could not be run, exited with a status other than 0, or took too long; the message says which."""


@dataclass(frozen=True, slots=True)
class Told:
    """One record of `--progress json`, and when it came, in seconds from the start of the program."""

    at: float
    event: str


@dataclass(frozen=True, slots=True)
class Build:
    """The duration of a build from exec to exit, in seconds, its records, and the output of its commands."""

    seconds: float
    told: tuple[Told, ...] = ()
    printed: str = ""


def watch(argv: Sequence[str | Path], *, events: bool, longest: float = LONGEST) -> Build:
    """Run a build to its end. With `events`, its stdout is read as records. Raises Failed."""
    with tempfile.TemporaryFile() as said:
        started = time.perf_counter()
        try:
            # in its own session, so that processes that it leaves can be ended with it
            child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if events else said,
                stderr=said,
                start_new_session=True,
            )
        except OSError as error:
            raise Failed(f"cannot run {argv[0]}: {error.strerror}") from error
        try:
            return _follow(child, started, started + longest, said)
        except TimeoutError:
            raise Failed(f"not done after {longest:g} s") from None
        finally:
            with suppress(ProcessLookupError):  # as usual: no process is left
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            if child.stdout:
                child.stdout.close()


def _follow(child: subprocess.Popen[bytes], started: float, deadline: float, said: IO[bytes]) -> Build:
    told, printed, failure = [], "", ""
    if child.stdout:
        for at, line in lines(child.stdout.fileno(), deadline):
            try:
                record = json.loads(line)
            except ValueError:
                raise Failed(f"it printed what is no record: {line[:TAIL].decode(errors='replace')}") from None
            told.append(Told(at - started, record["event"]))
            if record["event"] == "output":
                printed += record.get("data", "")
            elif record["event"] == "failed":
                failure = f"{record['message']}\n{printed[-TAIL:]}".strip()
    try:
        status = child.wait(max(0.0, deadline - time.perf_counter()))
    except subprocess.TimeoutExpired:
        raise TimeoutError from None
    seconds = time.perf_counter() - started
    if status != 0:
        said.seek(max(0, said.seek(0, os.SEEK_END) - TAIL))
        raise Failed(failure or f"exit status {status}: {said.read().decode(errors='replace').strip()}")
    return Build(seconds, tuple(told), printed)


def lines(fd: int, deadline: float) -> Iterator[tuple[float, bytes]]:
    """Yield complete lines with their times; TimeoutError at the deadline. All times are of perf_counter()."""
    rest = b""
    while select.select([fd], [], [], max(0.0, deadline - time.perf_counter()))[0]:
        data = os.read(fd, 1 << 16)
        at = time.perf_counter()
        if not data:
            return
        *whole, rest = (rest + data).split(b"\n")
        yield from ((at, line) for line in whole)
    raise TimeoutError


def first_output(build: Build) -> float:
    """Return the seconds from exec to the first output of a command of the build."""
    return next(told.at for told in build.told if told.event == "output")


def pauses(build: Build) -> list[float]:
    """Return the seconds from the last output of each step to the first of the next step that has any."""
    spans: list[list[float]] = []
    for told in build.told:
        if told.event == "started":
            spans.append([])
        elif told.event == "output":
            spans[-1].append(told.at)
    return [after[0] - before[-1] for before, after in pairwise([span for span in spans if span])]


def step_costs(build: Build) -> list[float]:
    """Return the seconds that each step took, from when the layer before it exists to when its own does."""
    times = [told.at for told in build.told if told.event in ("hit", "saved")]
    return [after - before for before, after in pairwise(times)]


def depth_ratio(chains: Sequence[Build], depth: int, window: int) -> float:
    """Return the median cost of `window` steps around `depth`, in chains that long, over that of the first."""
    costs = [step_costs(build) for build in chains]
    start = depth - window // 2
    deep = [cost for steps in costs for cost in steps[start : start + window]]
    return statistics.median(deep) / statistics.median(cost for steps in costs for cost in steps[:window])
