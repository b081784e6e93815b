"""What all plots share, and the two of every run. No pyplot: no global state, no display, safe beside other threads."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from manyskills.evaluation.results import METRIC_LABELS, TaskResult, shown_systems, system_label, task_results

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito 2008: told apart with every common colour blindness; yellow left out, it is faint on white."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SYSTEM_COLOURS = {
    "module": "#0072B2", "task_best": "#CC79A7", "frozen": "#009E73", "untrained": "#56B4E9", "floor": "#D55E00",
    "copy": "#E69F00",
}  # fmt: skip
SYSTEM_MARKERS = {"module": "o", "task_best": "D", "frozen": "^", "untrained": "v", "floor": "s", "copy": "X"}
INK, FAINT = "#333333", "#DDDDDD"
SMOOTHED_FROM = 30
"""Points from which a loss is drawn smoothed, with the raw values faint behind it."""


def plot_training(
    records: Iterable[Mapping[str, Any]], path: str | Path, *, metrics: Mapping[str, str] | None = None
) -> None:
    """Each task's training loss relative to chance, and its primary validation metric, by step.

    Args:
        records: The lines of `metrics.jsonl`; other kinds than `train` and `valid` are passed over.
        path: The PNG to write.
        metrics: Primary metric by task, for the legend.
    """
    records = list(records)
    losses = series((record["step"], record["scaled_loss"]) for record in records if record.get("kind") == "train")
    values = series((record["step"], record["primary"]) for record in records if record.get("kind") == "valid")
    tasks = list(dict.fromkeys([*losses, *values]))
    figure = Figure(figsize=(10, 4.4), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    for index, task in enumerate(tasks):
        colour, marker = PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)]
        name = (metrics or {}).get(task)
        label = task if name is None else f"{task} ({METRIC_LABELS.get(name, name)})"
        smoothed_line(left, *losses.get(task, ([], [])), colour)
        right.plot(*values.get(task, ([], [])), color=colour, marker=marker, markersize=4.5, linewidth=1.6, label=label)
    left.axhline(1.0, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    left.annotate(
        "chance", (1, 1), xycoords=("axes fraction", "data"), xytext=(-4, 3), textcoords="offset points",
        ha="right", va="bottom", color=INK, fontsize=8.5,
    )  # fmt: skip
    left.set_ylim(bottom=0)
    dress(left, "Training loss", "loss / loss at chance level")
    dress(right, "Validation", "primary metric")
    for axes in (left, right):
        axes.set_xlabel("step", color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if tasks:
        figure.legend(loc="outside lower center", ncols=min(4, len(tasks)), frameon=False, fontsize=9)
    write_figure(figure, Path(path))


def plot_results(results: Mapping[str, Any], path: str | Path) -> None:
    """Per task the primary metric of every system as a dot with its confidence interval.

    Args:
        results: The content of `results.json`.
        path: The PNG to write.
    """
    found = list(task_results(results))
    systems = shown_systems(found)
    height = 1.5 + max(1, len(found)) * max(0.75, 0.22 * len(systems) + 0.2)
    figure = Figure(figsize=(8.5, height), dpi=150, layout="constrained")
    axes = figure.subplots()
    offsets = np.linspace(-0.27, 0.27, len(systems)) if len(systems) > 1 else np.zeros(1)
    for index, name in enumerate(systems):
        _system_dots(axes, found, name, offsets[index], PALETTE[(index + 3) % len(PALETTE)])
    for row in range(1, len(found)):
        axes.axhline(row - 0.5, color=FAINT, linewidth=0.8)
    axes.set_yticks(range(len(found)), [_row_label(result) for result in found], fontsize=9.5)
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.margins(x=0.08)
    splits = sorted({result.split for result in found})
    dress(axes, f"Primary metric on {' and '.join(splits)}, with confidence intervals", None)
    axes.grid(visible=False, axis="y")
    if systems:
        figure.legend(loc="outside lower center", ncols=len(systems), frameon=False, fontsize=9)
    write_figure(figure, Path(path))


def series(points: Iterable[tuple[int, Mapping[str, float | None]]]) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values by task; a task misses the steps at which it has no value."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for step, values in points:
        for task, value in values.items():
            if value is not None and np.isfinite(value):
                steps, line = found.setdefault(task, ([], []))
                steps.append(step)
                line.append(value)
    return found


def smoothed_line(axes: Axes, steps: Sequence[int], values: Sequence[float], colour: str) -> Line2D:
    """One task's values; from `SMOOTHED_FROM` points their moving mean, before the faint values themselves."""
    if len(values) < SMOOTHED_FROM:
        return axes.plot(steps, values, color=colour, linewidth=1.6)[0]
    axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.25)
    return axes.plot(steps, _smooth(values, window=max(5, len(values) // 15)), color=colour, linewidth=1.8)[0]


def _smooth(values: Sequence[float], window: int) -> np.ndarray:
    """Centred moving mean, over fewer points at the ends."""
    kernel = np.ones(min(window, len(values)))
    return np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")


def _system_dots(axes: Axes, found: list[TaskResult], name: str, offset: float, fallback: str) -> None:
    colour, marker = SYSTEM_COLOURS.get(name, fallback), SYSTEM_MARKERS.get(name, "P")
    label = system_label(name)
    for row, result in enumerate(found):
        estimate = result.estimate(name)
        if estimate.value is None:
            continue
        place = row + offset
        if estimate.low is not None and estimate.high is not None:
            axes.plot([estimate.low, estimate.high], [place, place], color=colour, linewidth=2, solid_capstyle="round")
        axes.plot(
            estimate.value, place, marker, color=colour, markersize=7, markeredgecolor="white", label=label, zorder=3
        )
        axes.annotate(
            f"{estimate.value:.3f}", (estimate.high if estimate.high is not None else estimate.value, place),
            xytext=(5, 0), textcoords="offset points", va="center", fontsize=8, color=INK,
        )  # fmt: skip
        label = "_nolegend_"


def _row_label(result: TaskResult) -> str:
    text = f"{result.task}\n{result.metric_label}"
    return f"{text}, synthetic labels" if result.synthetic else text


def dress(axes: Axes, title: str, y_label: str | None) -> None:
    """Title, label, grid and colours that all plots share."""
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    axes.grid(color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    if y_label is not None:
        axes.set_ylabel(y_label, color=INK)


def write_figure(figure: Figure, path: Path) -> None:
    """PNG at `path`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            # No software version in the file: equal data give equal bytes.
            FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
