"""What the live view draws of a build: rows of text, for a terminal of any size. The clock is an argument."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from obuild.cli.live.state import Phase, Stage, State, Step
from obuild.host import printable, units

#: The most lines of output below one running step.
OUTPUT = 10

#: What a phase is called here, if not by its name.
_PHASES = {
    "waiting": "waiting for another build",
    "committing": "saving the layer",
    "saving": "saving the machine",
}

#: How much of a row its right part may take with what matters less.
_RIGHT = 0.6


class Row(NamedTuple):
    """One row: `left` is cut off where it meets `right`. `style` is one of paint.STYLES."""

    left: str
    right: str = ""
    style: str = ""


class Facts(NamedTuple):
    """What the footer says of the store: the bytes of its layers, and those free on its disk; None if unknown."""

    layers: int | None = None
    free: int | None = None


def rows(state: State, facts: Facts, now: float, columns: int, lines: int) -> list[Row]:
    """The rows for a terminal of this size: at least one, and fewer than `lines` if that is more than 1."""
    room = max(1, lines - 1)
    footer = Row(_footer(state, facts, now, columns), style="footer")
    heads = [_phase_row(phase, now) for phase in state.phases]
    working = [(stage, stage.step) for stage in state.active() if stage.step]
    fit = max(0, room - 1 - len(heads))
    hidden = len(working) - fit
    if hidden > 0:
        working = working[: max(0, fit - 1)]
        more = [Row(f"and {units.count(hidden + 1 if fit else hidden, 'more step')} at work", style="dim")]
    else:
        more = []
    left = room - 1 - len(heads) - len(working) - len(more)
    found = [*heads]
    for index, (stage, step) in enumerate(working):
        share = max(0, left // (len(working) - index))
        below = list(_below(step, share))
        left -= len(below)
        found += [_step_row(state, stage, step, now, columns), *below]
    return [*found, *more, footer][-room:]


def _step_row(state: State, stage: Stage, step: Step, now: float, columns: int) -> Row:
    number = f"{stage.done + 1}/{stage.total} " if stage.total else ""
    name = f"{stage.path} " if stage.path else ""
    phase = step.phases[-1] if step.phases else None
    right = f"{phase_name(phase)} {_amount(phase, now)}" if phase else units.clock(now - step.began)
    last = f" (last time {units.clock(step.seconds)})" if step.seconds is not None else ""
    if len(right + last) < columns * _RIGHT:
        right += last
    return Row(f"{name}{number}{_op(step.text)}", right, "step")


def _below(step: Step, room: int) -> Iterator[Row]:
    """What is below a step, in at most so many rows: why it is made, and the end of its output."""
    printed = step.output.last(min(OUTPUT, room))
    if step.why and room > min(1, len(printed)):
        yield Row(f"  {printable.line('; '.join(step.why))}", style="why")
        room -= 1
    for text in printed[-room:] if room > 0 else ():
        yield Row(f"  | {text}", style="output")


def _phase_row(phase: Phase, now: float) -> Row:
    """A phase that belongs to no step, such as making a base image."""
    return Row(phase_name(phase), _amount(phase, now), "step")


def phase_name(phase: Phase) -> str:
    """What a phase is called, with its subject."""
    name = _PHASES.get(phase.name, phase.name)
    if phase.name in ("running", "importing"):
        return name
    return f"{name} {printable.line(phase.subject)}".rstrip()


def _amount(phase: Phase, now: float) -> str:
    return amount(phase.done, phase.total, max(0.0, now - phase.began))


def amount(done: int, total: int, spent: float, *, known: int = 0) -> str:
    """`12.0 MiB of 40.0 MiB, 3.0 MiB/s, 0:09 left` after `spent` seconds; only the time if no bytes are counted.

    `known` of the bytes were done before.
    """
    if not done and not total:
        return units.clock(spent)
    rate = (done - known) / spent if spent >= 0.5 else 0.0
    text = units.size(done) + (f" of {units.size(total)}" if total else "")
    text += f", {units.size(int(rate))}/s" if rate else ""
    if rate and total > done:
        return f"{text}, {units.clock((total - done) / rate)} left"
    return f"{text}, {units.clock(spent)}"


def _footer(state: State, facts: Facts, now: float, columns: int) -> str:
    parts = [f"{state.done}/{units.count(state.total, 'step')}"] if state.total else []
    parts.append(units.clock(now - (state.began or now)))
    parts += [f"{state.cached} cached"] if state.cached else []
    parts += [f"network {'open' if state.network else 'closed'}"] if any(state.working()) else []
    parts += [f"layers {units.size(facts.layers)}"] if facts.layers is not None else []
    parts += [f"{units.size(facts.free)} free"] if facts.free is not None else []
    while len(parts) > 1 and len(", ".join(parts)) >= columns:
        parts.pop()
    return ", ".join(parts)


def _op(text: str) -> str:
    return printable.line(" ".join(text.split()))


def summary(state: State, tags: Sequence[str]) -> Iterator[str]:
    """The lines at the end of a complete build: its steps, the slowest three, its tags."""
    made = len(state.made)
    cached = f"{state.cached} from the cache, " if state.cached else ""
    counts = f"{cached}{made} made" if made else "all from the cache"
    yield f"{units.count(state.total, 'step')} in {units.clock(state.seconds)}: {counts}"
    slowest = sorted(state.made, key=lambda each: -each.seconds)[:3]
    for index, each in enumerate(slowest if made > 1 else ()):
        name = f"{each.stage}: " if each.stage else ""
        label = "slowest:" if index == 0 else ""
        yield f"{label:9}{units.clock(each.seconds):>7}  {name}{_op(each.text)[:60]}"
    if tags:
        yield f"tags:    {', '.join(tags)}"
