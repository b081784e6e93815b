"""Results as JSON for machines, a table and a plot for people."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from manyskills.evaluation.plots import INK, PALETTE
from manyskills.files import write_atomically


@dataclass(frozen=True, slots=True)
class Table:
    """Text in columns; the first is names, the others are numbers.

    Attributes:
        caption: One or more sentences below it.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    def markdown(self) -> str:
        """As GitHub shows it, aligned for reading as plain text too."""
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]
        rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
        lines = [_line(row, widths) for row in (self.columns, rule, *self.rows)]
        return "\n".join([*lines, *(["", self.caption] if self.caption else [])]) + "\n"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
    return f"| {' | '.join(padded)} |"


def write_report(
    name: str,
    output_folder: Path,
    result: Mapping[str, Any],
    tables: Table | Sequence[Table],
    plot: Callable[[Figure], None],
) -> None:
    """Write NAME.json, NAME.md and NAME.png, each whole or not at all, and print the tables.

    Args:
        name: Of the files.
        output_folder: Made if it is missing.
        result: Every number, JSON-ready.
        tables: One, or several that are written below each other.
        plot: Draws on an empty figure.
    """
    text = "\n".join(table.markdown() for table in ([tables] if isinstance(tables, Table) else tables))
    write_atomically(output_folder / f"{name}.json", json.dumps(result, indent=2) + "\n")
    write_atomically(output_folder / f"{name}.md", text)
    figure = Figure(figsize=(8, 4.2), dpi=150, layout="constrained")
    plot(figure)
    image = io.BytesIO()
    FigureCanvasAgg(figure).print_png(image)
    write_atomically(output_folder / f"{name}.png", image.getvalue())
    print(text)


def bars(axes: Axes, values: Mapping[str, float], title: str, unit: str, *, marked: str | None = None) -> None:
    """Horizontal bars with their values, the first on top.

    Args:
        axes: Where to draw.
        values: By label.
        title: Above the bars.
        unit: Below them.
        marked: The label whose bar has the other colour.
    """
    colours = [PALETTE[1] if label == marked else PALETTE[0] for label in values]
    drawn = axes.barh(list(values), list(values.values()), color=colours)
    axes.bar_label(drawn, fmt="%.3g", padding=3, color=INK, fontsize=8.5)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_title(title, loc="left", color=INK, fontsize=10.5)
    axes.set_xlabel(unit, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
