"""Rows as rich draws them: cut to the width of the terminal, and coloured if that is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from obuild.cli.live.look import Look
from obuild.cli.live.rows import Row
from obuild.cli.live.screen import Drawn

#: How the left part of each kind of row looks.
STYLES = {"": "", "step": "cyan", "why": "yellow", "output": "dim", "dim": "dim", "footer": "bold"}

#: How much of a row is left for its left part, in columns, however long the right part is.
_LEAST = 12


def texts(rows: Sequence[Row], columns: int, look: Look) -> list[Text]:
    """The rows as rich's texts, each shorter than the terminal is wide, so that none is wrapped."""
    return [_text(row, max(1, columns - 1), look) for row in rows]


def drawn(rows: Sequence[Row], columns: int, look: Look) -> list[Drawn]:
    """The rows as they are sent to a terminal."""
    console = Console(
        file=StringIO(),
        force_terminal=True,
        force_interactive=False,
        color_system="standard" if look.colour else None,
        width=max(2, columns),
        legacy_windows=False,
        _environ={},
    )
    found = []
    for text in texts(rows, columns, look):
        with console.capture() as capture:
            console.print(text, end="", soft_wrap=True, highlight=False, markup=False, emoji=False)
        found.append(Drawn(capture.get(), text.cell_len))
    return found


def _text(row: Row, width: int, look: Look) -> Text:
    left, right = (part if look.unicode else part.encode("ascii", "replace").decode() for part in row[:2])
    overflow = "ellipsis" if look.unicode else "crop"
    line = Text(left, STYLES[row.style])
    if right:
        end = Text(right)
        end.truncate(max(1, width - min(cell_len(left), _LEAST) - 1), overflow=overflow)  # type: ignore[arg-type]
        line.truncate(max(1, width - end.cell_len - 1), overflow=overflow, pad=True)  # type: ignore[arg-type]
        line = Text.assemble(line, " ", end)
    line.truncate(width, overflow=overflow)  # type: ignore[arg-type]
    return line
