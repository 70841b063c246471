"""A graph in the language of Graphviz."""

from __future__ import annotations

from collections.abc import Iterator

from obuild.cli.graph.model import Graph

_COLOURS = {"cached": "#f4f5f7", "made": "#dcebff", "build": "#dcebff", "failed": "#ffdfdd", "running": "#fff3cd"}


def dot(graph: Graph) -> str:
    """Return the graph as a `digraph`, with a cluster for each stage."""
    return "\n".join(("digraph build {", *(f"  {line}" for line in _lines(graph)), "}")) + "\n"


def _lines(graph: Graph) -> Iterator[str]:
    yield 'node [shape=box, style="rounded,filled", fontname=monospace, fontsize=10];'
    for column, title in enumerate(graph.titles):
        yield f"subgraph cluster_{column} {{"
        yield f"  label={_quoted(title)};"
        for number, node in enumerate(graph.nodes):
            if node.stage == column:
                label = _quoted(f"{node.label}\n{node.state}")
                colour, detail = _quoted(_COLOURS.get(node.state, "#eef1f5")), _quoted(node.detail)
                yield f"  n{number} [label={label}, fillcolor={colour}, tooltip={detail}];"
        yield "}"
    for start, end in graph.edges:
        style = "" if graph.nodes[start].stage == graph.nodes[end].stage else " [style=dashed]"
        yield f"n{start} -> n{end}{style};"


def _quoted(text: str) -> str:
    """A string of the language: only the quote is special, and a backslash begins an escape."""
    shown = "".join(char if char.isprintable() or char == "\n" else "�" for char in text)
    return '"' + shown.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
