"""The results table: one row a task, one column a system, and below it what a reader must not overlook."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from manyskills.evaluation.results import TaskResult, shown_systems, system_label, task_results
from manyskills.evaluation.scores import Estimate, TaskScores

if TYPE_CHECKING:
    from rich.console import Console

LEGEND = "value [confidence interval]; * best of the row"
OF_THE_RUN = ("module", "task_best")
"""The module itself, in one checkpoint for all tasks or in one for each: what the others are compared with."""

WIDE = 100
"""Columns from which sizes have a column of their own."""


def results_table(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows behind the table, as data.

    Returns:
        For every task: `task`, `metric`, `split`, `rows`, `positives`, `candidates`, `synthetic`, `best` (a system's
        key, or None) and `systems`, `{value, low, high}` by system key; None in place of what is undefined.
    """
    rows = []
    for result in task_results(results):
        scores = next(iter(result.scores.values()), None)
        rows.append(
            {
                "task": result.task,
                "metric": result.metric,
                "split": result.split,
                "rows": scores and scores.rows,
                "positives": scores and scores.positives,
                "candidates": scores and scores.candidates,
                "synthetic": result.synthetic,
                "best": result.best,
                "systems": {name: result.estimate(name).to_dict() for name in result.scores},
            }
        )
    return rows


def notes(results: Mapping[str, Any]) -> list[str]:
    """Sentences under the table: every baseline that stands above the module, and every synthetic label."""
    found = []
    for result in task_results(results):
        found += [_behind(result, name) for name in result.scores if _stands_above(result, name)]
        if result.synthetic:
            found.append(f"{result.task}: synthetic labels ({result.synthetic})")
        if result.split != "test":
            found.append(f"{result.task}: scores are on the {result.split} split")
    return found


def render_markdown(results: Mapping[str, Any]) -> str:
    """The table and its notes as GitHub Markdown; the best value of a row is bold."""
    found = list(task_results(results))
    systems = shown_systems(found)
    lines = [
        "| " + " | ".join(["task", "metric", "data", *(system_label(name) for name in systems)]) + " |",
        "|" + "---|" * (3 + len(systems)),
    ]
    for result in found:
        cells = [_cell(result.estimate(name), bold=name == result.best) for name in systems]
        task = f"`{result.task}`" + (" (synthetic labels)" if result.synthetic else "")
        lines.append("| " + " | ".join([task, result.metric_label, _size(result), *cells]) + " |")
    return "\n".join([*lines, "", *(f"* {note}" for note in notes(results))]).rstrip() + "\n"


def print_table(results: Mapping[str, Any], console: Console) -> None:
    """The table and its notes on a terminal; on a narrow one the sizes move under the task's name."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    found = list(task_results(results))
    systems = shown_systems(found)
    wide = console.width >= WIDE
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_lines=True)
    table.add_column("task", no_wrap=True)
    if wide:
        table.add_column("data", no_wrap=True)
    for name in systems:
        table.add_column(system_label(name).replace(" + ", " +\n"), justify="right")
    for result in found:
        size = _size(result).replace(", ", "\n")
        metric = f"{result.metric_label}, synthetic" if result.synthetic else result.metric_label
        task = Text.assemble(result.task, "\n", (metric, "bold"), "" if wide else f"\n{size}")
        cells = [_terminal_cell(result.estimate(name), best=name == result.best) for name in systems]
        table.add_row(task, *([size] if wide else []), *(Text(text, style=style) for text, style in cells))
    console.print(table)
    for line in [LEGEND, *(f"- {note}" for note in notes(results))]:
        console.print(Text(line))


def _stands_above(result: TaskResult, name: str) -> bool:
    module, other = result.estimate("module").value, result.estimate(name).value
    return name not in OF_THE_RUN and module is not None and other is not None and other > module


def _behind(result: TaskResult, name: str) -> str:
    module, other = result.estimate("module"), result.estimate(name)
    assert module.value is not None and other.value is not None
    text = (
        f"{result.task}: the {system_label(name)} stands higher than the module, by {other.value - module.value:.3f} "
        f"{result.metric_label} ({other.value:.3f} against {module.value:.3f})"
    )
    if module.low is None or module.high is None or other.low is None or other.high is None:
        return text
    overlap = module.low <= other.high and other.low <= module.high
    return f"{text}; their intervals {'overlap' if overlap else 'do not overlap'}"


def _size(result: TaskResult) -> str:
    scores = next(iter(result.scores.values()), None)
    return "" if scores is None else _describe(scores)


def _describe(scores: TaskScores) -> str:
    if scores.candidates is not None:
        return f"{scores.rows:,} queries, {scores.candidates:,} candidates"
    if scores.positives is not None:
        return f"{scores.rows:,} rows, {scores.positives:,} positive"
    return f"{scores.rows:,} rows"


def _cell(estimate: Estimate, *, bold: bool) -> str:
    value, interval = _value_and_interval(estimate)
    return " ".join(filter(None, [f"**{value}**" if bold else value, interval]))


def _terminal_cell(estimate: Estimate, *, best: bool) -> tuple[str, str]:
    """Text and style; the mark shows on terminals without colours too."""
    value, interval = _value_and_interval(estimate)
    return f"{'* ' if best else ''}{value}\n{interval}", "bold green" if best else ""


def _value_and_interval(estimate: Estimate) -> tuple[str, str]:
    if estimate.value is None:
        return "–", ""  # noqa: RUF001
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}", ""
    return f"{estimate.value:.3f}", f"[{_short(estimate.low)}, {_short(estimate.high)}]"


def _short(value: float) -> str:
    """Three digits without the leading zero: .614, -.020, 1.00."""
    text = f"{value:.3f}"
    return text[:4] if text.startswith("1") else text.replace("0.", ".", 1)
