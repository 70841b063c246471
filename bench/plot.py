"""The plot of bench.steps: a bar for each way to build, on a logarithmic scale. Only it imports matplotlib."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullLocator

from bench.results import Results, seconds

COLOURS = {"cold": "#4c78a8", "first": "#f2b35e", "warm": "#d1495b", "peer": "#9a9a9a"}

#: In inches. The picture is 8 wide, which is 800 px in a browser.
BAR, GAP, PANEL, REST = 0.18, 0.13, 0.3, 1.1


def plot(everything: Sequence[Results], names: dict[str, str], path: Path) -> Path:
    """Draw a panel for each base, with the ways labelled by `names`; return the picture's path."""
    heights = [PANEL + _length(results) for results in everything]
    figure = Figure(figsize=(8, sum(heights) + REST), layout="constrained")
    panels = figure.subplots(len(everything), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, results in zip(panels, everything, strict=True):
        _draw(axes, results)
    shortest = min(
        (min(times) for results in everything for times in results.times.values() if times), default=1.0
    )
    panels[0].set_xlim(left=10.0 ** math.floor(math.log10(shortest)))
    handles = [Patch(color=COLOURS[way], label=name) for way, name in names.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(names), frameon=False)
    when = time.strftime("%Y-%m-%d")
    figure.suptitle(f"Seconds that builds take, medians ({everything[0].machine}; {when})", fontsize=12)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200)
    return path


def _length(results: Results) -> float:
    """Return the height of the bars in inches: one for each measurement, and a gap below each case."""
    return len(results.times) * BAR + len(results.cases()) * GAP


def _draw(axes: Axes, results: Results) -> None:
    """Draw bars from the top down, case by case, each with its number at its end."""
    axes.set_xscale("log")
    y = 0.0
    middles = []
    for case in results.cases():
        ways = [way for way in COLOURS if (case, way) in results.times]
        middles.append(y + BAR * (len(ways) - 1) / 2)
        for way in ways:
            if (median := results.median(case, way)) is not None:
                bars = axes.barh(y, median, BAR * 0.9, color=COLOURS[way])
                axes.bar_label(bars, [f"{seconds(median)} s"], padding=3, fontsize=8)
            else:
                left = axes.get_yaxis_transform()
                axes.text(0.005, y, "failed", transform=left, va="center", fontsize=8, color=COLOURS[way])
            y += BAR
        y += GAP
    axes.set_title(results.base, loc="left", fontsize=10, fontweight="bold")
    axes.set_yticks(middles, results.cases())
    axes.set_ylim(y - GAP, -BAR)
    axes.margins(x=0.1)  # room for the numbers
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} s"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(left=False, bottom=False)
    axes.spines[:].set_visible(False)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
