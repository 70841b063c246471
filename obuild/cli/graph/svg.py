"""A graph as SVG."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path

from obuild.cli.graph.model import Graph, Node

#: The size of a node and the space between two, in pixels.
_WIDTH, _HEIGHT, _ACROSS, _DOWN = 270, 40, 60, 22

#: The space above the nodes, for the titles of stages, and around everything.
_TOP, _MARGIN = 34, 12

#: What shows a state besides its colour.
_MARKS = {"cached": "✓", "made": "●", "build": "●", "failed": "✗", "running": "▶", "remote": "☁"}


def draw(graph: Graph, *, label: str) -> str:
    """Return an SVG element with its own style, for light and dark. `label` is what a screen reader says it is."""
    columns, rows = len(graph.titles), max((node.row for node in graph.nodes), default=0) + 1
    width = 2 * _MARGIN + columns * (_WIDTH + _ACROSS) - _ACROSS
    height = 2 * _MARGIN + _TOP + rows * (_HEIGHT + _DOWN) - _DOWN
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="graph" {size} role="group" aria-label="{_text(label)}">',
        f"<style>{_style()}</style>",
        *_titles(graph),
        *(_edge(graph.nodes[start], graph.nodes[end]) for start, end in graph.edges),
        *map(_node, graph.nodes),
        "</svg>\n",
    ]
    return "\n".join(parts)


def _style() -> str:
    return Path(__file__).with_name("graph.css").read_text(encoding="utf-8")


def _titles(graph: Graph) -> Iterator[str]:
    for column, title in enumerate(graph.titles):
        yield f'<text class="title" x="{_x(column)}" y="{_MARGIN + 14}">{_text(title)}</text>'


def _edge(start: Node, end: Node) -> str:
    if start.stage == end.stage:
        x = _x(start.stage) + _WIDTH // 2
        return f'<path class="edge" d="M{x} {_y(start.row) + _HEIGHT}V{_y(end.row)}"/>'
    x1, y1 = _x(start.stage) + _WIDTH, _y(start.row) + _HEIGHT // 2
    x2, y2 = _x(end.stage), _y(end.row) + _HEIGHT // 2
    if end.stage - start.stage == 1:
        way = f"C{x1 + _ACROSS} {y1} {x2 - _ACROSS} {y2} {x2} {y2}"
    else:  # between two rows, where no column has a node
        half = _ACROSS // 2
        way = f"H{x1 + half}V{_y(end.row) - _DOWN // 2}H{x2 - half}V{y2}H{x2}"
    return f'<path class="edge copy" d="M{x1} {y1}{way}"/>'


def _node(node: Node) -> str:
    x, y = _x(node.stage), _y(node.row)
    state = _text(node.state)
    spoken = f"{node.label}, {node.state}"
    inner = (
        f"<title>{_text(node.detail or spoken)}</title>"
        f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="6"/>'
        f'<text x="{x + 10}" y="{y + 17}">{_text(node.label)}</text>'
        f'<text class="state" x="{x + 10}" y="{y + 32}">{_MARKS.get(node.state, "○")} {state}</text>'
    )
    if not node.anchor:
        return f'<g class="node {state}">{inner}</g>'
    return f'<a class="node {state}" href="#{_text(node.anchor)}" aria-label="{_text(spoken)}">{inner}</a>'


def _x(column: int) -> int:
    return _MARGIN + column * (_WIDTH + _ACROSS)


def _y(row: int) -> int:
    return _MARGIN + _TOP + row * (_HEIGHT + _DOWN)


def _text(text: str) -> str:
    """Text for XML, which has no control characters and no bytes that are not UTF-8."""
    return escape("".join(char if char.isprintable() else " " if char in "\n\t" else "�" for char in text))
