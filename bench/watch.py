"""Run a program that builds, as a user would, and note what it tells of itself and when."""

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

#: How much of what a failed program said is shown, in bytes.
TAIL = 400


class Failed(Exception):
    """A program could not be run, ended with another status than 0, or took too long; says which."""


@dataclass(frozen=True, slots=True)
class Told:
    """One record of `--progress json`, and when it came, in seconds from the start of the program."""

    at: float
    event: str


@dataclass(frozen=True, slots=True)
class Build:
    """What a build took from exec to exit, in seconds, and what it told meanwhile; `printed` by its commands."""

    seconds: float
    told: tuple[Told, ...] = ()
    printed: str = ""


def watch(argv: Sequence[str | Path], *, events: bool, longest: float = LONGEST) -> Build:
    """Run a build to its end; with `events`, its stdout is read as records, as they come. Raises Failed."""
    with tempfile.TemporaryFile() as said:
        started = time.perf_counter()
        try:
            # a session of its own, so that what it leaves behind can be ended with it
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
            with suppress(ProcessLookupError):  # the rule: nothing of it is left
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
    """Whole lines as they come, each with its time; TimeoutError at the deadline. Both are by perf_counter()."""
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
    """Seconds from exec to the first that a command of the build printed."""
    return next(told.at for told in build.told if told.event == "output")


def pauses(build: Build) -> list[float]:
    """Seconds between the last that a step printed and the first that the next one did, for all that printed."""
    spans: list[list[float]] = []
    for told in build.told:
        if told.event == "started":
            spans.append([])
        elif told.event == "output":
            spans[-1].append(told.at)
    return [after[0] - before[-1] for before, after in pairwise([span for span in spans if span])]


def step_costs(build: Build) -> list[float]:
    """Seconds that each step took, from the layer before it being there to its own being there."""
    times = [told.at for told in build.told if told.event in ("hit", "saved")]
    return [after - before for before, after in pairwise(times)]


def depth_ratio(chains: Sequence[Build], depth: int, window: int) -> float:
    """The median cost of the `window` steps around `depth`, of chains that are so long, over that of the first."""
    costs = [step_costs(build) for build in chains]
    start = depth - window // 2
    deep = [cost for steps in costs for cost in steps[start : start + window]]
    return statistics.median(deep) / statistics.median(cost for steps in costs for cost in steps[:window])
