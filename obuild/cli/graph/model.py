"""The graph of a build: a column of nodes for each stage, and an edge for each copy from another stage."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

#: This many cached steps in a row are one node.
FOLDED = 3

#: If there are more nodes, steps in a row that have anything else in common are one node, too.
MOST = 250

#: The longest label, in characters.
WIDTH = 34


class Step(NamedTuple):
    """A step as it is drawn.

    `state` is a word such as `cached`. `origin` is the path of the stage that it copies from, or "". `detail` is
    shown when somebody points at it. `anchor` is the id of its description in the same page, "" for none.
    """

    op: int
    text: str
    state: str
    origin: str = ""
    detail: str = ""
    anchor: str = ""


class Stage(NamedTuple):
    """A stage: its path, "" for the outermost one, and its steps in order."""

    path: str
    steps: Sequence[Step]


class Node(NamedTuple):
    """One step, or several in a row. `stage` is the number of its column, `row` counts from the top."""

    stage: int
    row: int
    label: str
    state: str
    detail: str
    anchor: str


class Graph(NamedTuple):
    """What is drawn; edges lead from the earlier to the later node, by their numbers."""

    titles: tuple[str, ...]
    nodes: tuple[Node, ...]
    edges: tuple[tuple[int, int], ...]


def graph(stages: Sequence[Stage]) -> Graph:
    """Lay out stages; each comes after those that it copies from."""
    runs = [list(_runs(stage.steps, {"cached"}, FOLDED)) for stage in stages]
    if sum(map(len, runs)) > MOST:
        runs = [list(_runs(stage.steps, {step.state for step in stage.steps}, 2)) for stage in stages]
    nodes: list[Node] = []
    edges: list[tuple[int, int]] = []
    ends: dict[str, int] = {}
    for column, (stage, found) in enumerate(zip(stages, runs, strict=True)):
        last = None
        for run in found:
            before = [] if last is None else [last]
            before += [ends[step.origin] for step in run if step.origin in ends]
            row = max((nodes[number].row + 1 for number in before), default=0)
            edges += [(number, len(nodes)) for number in before]
            last = len(nodes)
            nodes.append(_node(column, row, run))
        if last is not None:
            ends[stage.path] = last
    return Graph(tuple(stage.path or "result" for stage in stages), tuple(nodes), tuple(edges))


def _runs(steps: Iterable[Step], states: set[str], least: int) -> Iterable[list[Step]]:
    """Steps in a row with one of these states together, if there are at least so many; the others alone."""
    for (state, origin), group in groupby(steps, lambda step: (step.state, step.origin)):
        run = list(group)
        if state in states and not origin and len(run) >= least:
            yield run
        else:
            yield from ([step] for step in run)


def _node(column: int, row: int, run: Sequence[Step]) -> Node:
    first, last = run[0], run[-1]
    if len(run) > 1:
        label = f"{first.op}–{last.op}: {len(run)} steps"
        return Node(column, row, label, first.state, f"{first.text} … {last.text}", first.anchor)
    return Node(column, row, _cut(f"{first.op}: {op_of(first.text)}"), first.state, first.detail, first.anchor)


def op_of(text: str) -> str:
    """The op in the text of a step, without its working folder."""
    _, found, op = text.partition(": (")
    return f"({op}" if found and not text.startswith("(") else text


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"
