"""The plot of a run's conflicts: effective weights, gradient norms, cosines between the tasks' gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    FixedLocator,
    LogLocator,
    MaxNLocator,
    NullLocator,
    PercentFormatter,
    StrMethodFormatter,
)  # fmt: skip

from manyskills.evaluation.conflict import COLLAPSE
from manyskills.evaluation.plots import INK, MARKERS, PALETTE, dress, series, smoothed_line, write_figure

MARKS = 8
"""Markers on a line."""
LEAST_RANGE = 0.2
"""The colours of the cosines reach this far at least, so that noise around 0 looks pale."""

Lines = dict[str, tuple[list[int], list[float]]]


def plot_conflict(records: Iterable[Mapping[str, Any]], conflict: Mapping[str, Any], path: str | Path) -> None:
    """Effective weights by step and, where they were measured, gradient norms by step and the mean cosines.

    Nothing is written for a single task or without weights.

    Args:
        records: The lines of metrics.jsonl.
        conflict: The entry `conflict` of results.json.
        path: The PNG to write.
    """
    trained = [record for record in records if record.get("kind") == "train"]
    weights = series((record["step"], record.get("weights", {})) for record in trained)
    norms = series((record["step"], record.get("gradient_norms", {})) for record in trained)
    if len(weights) < 2:
        return
    panels = 1 + bool(norms) + bool(conflict["cosines"])
    figure = Figure(figsize=(0.6 + 4.4 * panels, 4.6), dpi=150, layout="constrained")
    axes = list(figure.subplots(1, panels, squeeze=False, gridspec_kw={"wspace": 0.06})[0])
    _plot_weights(axes[0], weights)
    if norms:
        _plot_norms(axes[1], norms, list(weights))
    if conflict["cosines"]:
        _plot_cosines(axes[-1], conflict, list(weights))
    figure.legend(
        loc="outside lower center", ncols=min(4 if panels > 1 else 2, len(weights)), frameon=False, fontsize=9
    )
    write_figure(figure, Path(path))


def _plot_weights(axes: Axes, weights: Lines) -> None:
    for task, line in _lines(axes, weights, list(weights)).items():
        line.set_label(task)
    dress(axes, "Effective weight", "share of all weights")
    # linear below 1 %, where a rule may well give 0, and logarithmic above
    axes.set_yscale("symlog", linthresh=COLLAPSE, linscale=0.5)
    axes.set_ylim(min(0.0, *(min(values) for _, values in weights.values())), 1)
    axes.yaxis.set_major_locator(FixedLocator([0, 0.01, 0.03, 0.1, 0.3, 1]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.axhline(COLLAPSE, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        "hardly trained below", (1, COLLAPSE), xycoords=("axes fraction", "data"), xytext=(-4, -3),
        textcoords="offset points", ha="right", va="top", color=INK, fontsize=8.5,
    )  # fmt: skip


def _plot_norms(axes: Axes, norms: Lines, tasks: Sequence[str]) -> None:
    _lines(axes, norms, tasks)
    dress(axes, "Gradient on the shared module", "length, loss scaled to 1 at chance")
    if any(value > 0 for _, line in norms.values() for value in line):  # heads that start at zero send nothing back
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _lines(axes: Axes, values: Lines, tasks: Sequence[str]) -> dict[str, Line2D]:
    """One line a task, by step. Markers take turns, so that equal lines can be told apart."""
    drawn: dict[str, Line2D] = {}
    for index, task in enumerate(tasks):
        if task in values:
            steps, line = values[task]
            drawn[task] = smoothed_line(axes, steps, line, PALETTE[index % len(PALETTE)])
            every = max(len(tasks), len(steps) // MARKS)
            first = index * every // len(tasks) % len(steps)
            drawn[task].set(marker=MARKERS[index % len(MARKERS)], markersize=5, markevery=(first, every))
    axes.set_xlabel("step", color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return drawn


def _plot_cosines(axes: Axes, conflict: Mapping[str, Any], tasks: Sequence[str]) -> None:
    """The lower triangle; in small print how often the pair was in conflict."""
    cosines_KK, negative_KK = _matrix(conflict["cosines"], tasks), _matrix(conflict["negative"], tasks)
    reach = max(LEAST_RANGE, float(np.nanmax(np.abs(cosines_KK))))
    below_diagonal = np.tril(np.ones((len(tasks) - 1, len(tasks) - 1), dtype=bool))
    axes.imshow(np.where(below_diagonal, cosines_KK[1:, :-1], np.nan), cmap="RdBu", vmin=-reach, vmax=reach)
    for row, column in np.argwhere(below_diagonal).tolist():
        cosine, share = float(cosines_KK[row + 1, column]), float(negative_KK[row + 1, column])
        if not np.isnan(cosine):
            colour = "white" if abs(cosine) > 0.6 * reach else INK
            value = f"{round(cosine, 2) + 0.0:.2f}".replace("-", "\N{MINUS SIGN}")
            axes.annotate(value, (column, row), ha="center", va="bottom", color=colour, fontsize=11)
            axes.annotate(
                f"{share:.0%}", (column, row), xytext=(0, -3), textcoords="offset points", ha="center", va="top",
                color=colour, fontsize=8,
            )  # fmt: skip
    dress(axes, "Cosine of two tasks' gradients", None)
    axes.grid(visible=False)
    for edge in np.arange(0.5, len(tasks) - 2):
        axes.axhline(edge, color="white", linewidth=2)
        axes.axvline(edge, color="white", linewidth=2)
    axes.spines[:].set_visible(False)
    axes.set_xticks(range(len(tasks) - 1), [_two_lines(task) for task in tasks[:-1]], fontsize=8.5)
    axes.set_yticks(range(len(tasks) - 1), [_two_lines(task) for task in tasks[1:]], fontsize=8.5)
    axes.set_xlabel("mean; below it: share of the measured steps\nin which it was negative", color=INK, fontsize=8.5)


def _matrix(pairs: Mapping[str, Mapping[str, float]], tasks: Sequence[str]) -> np.ndarray:
    """Symmetric, shape (K, K); NaN where nothing was measured."""
    values_KK = np.full((len(tasks), len(tasks)), np.nan)
    for a, row in pairs.items():
        for b, value in row.items():
            i, j = tasks.index(a), tasks.index(b)
            values_KK[i, j] = values_KK[j, i] = value
    return values_KK


def _two_lines(task: str) -> str:
    return task.replace("_", "_\n", 1)
