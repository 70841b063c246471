"""What bench.steps measured on one base: medians, a table of them, and whether targets are met."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from bench.watch import Build, depth_ratio, pauses

#: In the order of columns and bars.
WAYS = ("cold", "first", "warm", "peer")

#: Pairs of ways; the table shows how many times as long the first takes as the second.
RATIOS = (("cold", "warm"), ("cold", "first"), ("peer", "cold"), ("peer", "warm"))

#: The row that is not about whole builds.
FIRST_OUTPUT = "first output"

DEPTH, WINDOW = 50, 10


@dataclass(slots=True)
class Results:
    """All measurements on a base, in seconds. `times` is by case and way, in the order of the table.

    A `failed` case and way has no median, however often it succeeded. `boots` are from the start of the guest's
    machine to a login by SSH. `chains` are builds on a warm base, by turns of DEPTH + WINDOW / 2 steps and of
    WINDOW. `machine` says what the guests ran on.
    """

    base: str
    times: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    failed: set[tuple[str, str]] = field(default_factory=set)
    boots: list[float] = field(default_factory=list)
    chains: list[Build] = field(default_factory=list)
    machine: str = ""

    def cases(self) -> list[str]:
        return list(dict.fromkeys(case for case, _ in self.times))

    def median(self, case: str, way: str) -> float | None:
        """Return None if it failed, or was not measured."""
        times = self.times.get((case, way))
        return statistics.median(times) if times and (case, way) not in self.failed else None

    def ratio(self, case: str, over: str, under: str) -> float | None:
        return divided(self.median(case, over), self.median(case, under))

    def good(self) -> bool:
        """Return whether all targets are met, and nothing but the peer failed."""
        return all(way == "peer" for _, way in self.failed) and all(target.met for target in targets(self))


@dataclass(frozen=True, slots=True)
class Target:
    """A value that must be at most, or at least, `limit`; without a `value` it could not be measured."""

    text: str
    value: float | None
    limit: float
    at_least: bool = False
    unit: str = ""

    @property
    def met(self) -> bool:
        if self.value is None:
            return False
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        wanted = f"target: at {'least' if self.at_least else 'most'} {self.limit:g}{self.unit}"
        if self.value is None:
            return f"{self.text}: not measured ({wanted})"
        return f"{self.text}: {self.value:.3g}{self.unit} ({wanted}): {'yes' if self.met else 'NO'}"


def divided(over: float | None, under: float | None) -> float | None:
    """Return over / under, if both are known."""
    return None if over is None or not under else over / under


def table(results: Results, ways: Sequence[str]) -> Iterator[str]:
    """Yield the lines of a Markdown table that is also readable as text: medians in seconds, then their ratios."""
    ratios = [pair for pair in RATIOS if set(pair) <= set(ways)]
    rows = [[results.base, *ways, *(f"{over} / {under}" for over, under in ratios)]]
    for case in results.cases():
        cells = [_cell(results, case, way) for way in ways]
        rows.append([case, *cells, *(_times(results.ratio(case, *pair)) for pair in ratios)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rows.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    for name, *cells in rows:
        padded = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        yield f"| {' | '.join([name.ljust(widths[0]), *padded])} |"


def _cell(results: Results, case: str, way: str) -> str:
    if (case, way) in results.failed:
        return "failed"
    median = results.median(case, way)
    return "" if median is None else f"{seconds(median)} s"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{seconds(ratio)} ×"


def seconds(value: float) -> str:
    """Format a number with about three significant digits and no exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def targets(results: Results) -> Iterator[Target]:
    """Yield what warm machines must reach on this base."""
    warm10 = results.median("true-10", "warm")
    boot = statistics.median(results.boots) if results.boots else None
    if results.base == "debian-12":
        step = divided(warm10, 10.0)
        text = f"1. one of 10 steps, warm{_in(step)}, / a boot to the login by SSH{_in(boot)}"
        yield Target(text, divided(step, boot), 1 / 25)
    first = results.median(FIRST_OUTPUT, "warm")
    for what, cold in (
        ("the same, cold", results.median(FIRST_OUTPUT, "cold")),
        ("a whole cold build of `true`", results.median("true-1", "cold")),
    ):
        text = f"2. to the first output, warm{_in(first)}, / {what}{_in(cold)}"
        yield Target(text, divided(first, cold), 1 / 10)
    cold10 = results.median("true-10", "cold")
    text = f"3. the build of 10 steps, cold{_in(cold10)}, / warm{_in(warm10)}"
    yield Target(text, divided(cold10, warm10), 15, at_least=True)
    between = [pause for chain in results.chains for pause in pauses(chain)[:WINDOW]]
    sealing = statistics.median(between) if between else None
    text = "4. from the last output of a warm step to the first of the next, the start of its shell included"
    yield Target(text, sealing, 0.5, unit=" s")
    deep = depth_ratio(results.chains, DEPTH, WINDOW) if results.chains else None
    yield Target(f"5. a step at depth {DEPTH} / one at the start of a chain, warm", deep, 1.15)


def _in(value: float | None) -> str:
    return "" if value is None else f" ({seconds(value)} s)"
