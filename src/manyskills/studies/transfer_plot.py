"""The negative transfer report as a picture: one row a task, its difference with interval."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from manyskills.evaluation.plots import INK, dress, write_figure
from manyskills.evaluation.results import METRIC_LABELS
from manyskills.studies.transfer_report import TaskTransfer, Transfer

COLOURS = {"helps": "#009E73", "hurts": "#D55E00", "no difference found": "#777777"}
MARKERS = {"helps": "^", "hurts": "v", "no difference found": "o"}
RANGE_COLOUR = "#BBBBBB"


def plot_transfer(report: Transfer, path: str | Path) -> None:
    """Differences of the primary metrics with their intervals; thin lines are the range over runs.

    Args:
        report: What is drawn.
        path: The PNG to write.
    """
    figure = Figure(figsize=(8.5, 1.95 + 0.62 * len(report.tasks)), dpi=150, layout="constrained")
    axes = figure.subplots()
    for row, found in enumerate(report.tasks):
        _row(axes, row, found)
    axes.axvline(0, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(report.tasks)), [_label(found) for found in report.tasks], fontsize=9.5)
    axes.set_ylim(len(report.tasks) - 0.5, -0.5)
    axes.margins(x=0.12)
    dress(axes, "Learnt together minus learnt alone, on test", None)
    axes.set_xlabel(f"difference of the primary metric, {report.confidence:.0%} interval", color=INK)
    axes.grid(visible=False, axis="y")
    drawn = {found.verdict_words: found for found in report.tasks}
    handles = [
        axes.plot(
            [], [], MARKERS[found.verdict], color=COLOURS[found.verdict], markerfacecolor=_fill(found), markersize=7,
            label=_legend(found),
        )[0]
        for _, found in sorted(drawn.items())
    ]  # fmt: skip
    if any(found.range_over_runs for found in report.tasks):
        handles += axes.plot([], [], color=RANGE_COLOUR, linewidth=5, label="range over pairs of runs")
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    write_figure(figure, Path(path))


def _row(axes: Axes, row: int, found: TaskTransfer) -> None:
    difference, colour = found.comparison.difference, COLOURS[found.verdict]
    if difference.value is None:
        axes.annotate("undefined", (0, row), va="center", fontsize=8, color=INK)
        return
    if found.range_over_runs:
        axes.plot(found.range_over_runs, [row, row], color=RANGE_COLOUR, linewidth=6, solid_capstyle="butt")
    if difference.low is not None and difference.high is not None:
        axes.plot([difference.low, difference.high], [row, row], color=colour, linewidth=2, solid_capstyle="round")
    axes.plot(
        difference.value, row, MARKERS[found.verdict], color=colour, markersize=8, zorder=3,
        markerfacecolor=_fill(found), markeredgecolor=colour if found.on_these_runs else "white",
    )  # fmt: skip
    axes.annotate(
        f"{difference.value:+z.3f}", (difference.value, row), xytext=(0, 8), textcoords="offset points",
        ha="center", fontsize=8, color=INK,
    )  # fmt: skip


def _fill(found: TaskTransfer) -> str:
    """Of its marker, which is hollow where the verdict is about these runs only."""
    return "white" if found.on_these_runs else COLOURS[found.verdict]


def _label(found: TaskTransfer) -> str:
    metric = METRIC_LABELS.get(found.comparison.metric, found.comparison.metric)
    return f"{found.task}\n{metric}{', synthetic labels' if found.synthetic else ''}"


def _legend(found: TaskTransfer) -> str:
    certain = "" if found.verdict == "no difference found" else " (corrected p < 0.05)"
    return found.verdict_words + certain
