"""The negative transfer report in words: a table, a sentence a task, and what to know besides."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from manyskills.evaluation.results import METRIC_LABELS
from manyskills.evaluation.scores import Estimate
from manyskills.studies.training_facts import TrainingFacts
from manyskills.studies.transfer_report import LEVEL, TaskTransfer, Transfer

if TYPE_CHECKING:
    from rich.console import Console

HEADINGS = ("task", "metric", "multi", "single", "difference", "p", "Holm p", "rows better / worse", "verdict")
LEFT = 2
"""Columns with words before those with numbers."""


def method_text(report: Transfer) -> str:
    """How the numbers were made, in one paragraph."""
    return (
        "Difference: multi-task minus single-task, means over runs, with the "
        f"{report.confidence:.0%} interval of a paired bootstrap over test rows ({report.resamples:,} resamples). "
        "p: approximate randomisation of the same difference, the answers to a row swapped between the systems "
        f"({report.permutations:,} permutations); corrected p: Holm-Bonferroni over {len(report.tasks)} tasks. "
        "Interval and test are about the rows, with these runs as they are; how far the metric moves with the seed is "
        "the range over pairs of runs. A verdict is one on these runs where a side has one seed only, or where that "
        "range holds 0."
    )


def gain_text(report: Transfer) -> str:
    """The mean relative gain over tasks."""
    gain = report.relative_gain
    if gain.value is None:
        return "Mean relative gain over tasks: undefined, because a single-task metric is 0 or undefined."
    interval = "" if gain.low is None or gain.high is None else f" [{gain.low:+z.1%}, {gain.high:+z.1%}]"
    return f"Mean relative gain over tasks (Delta_m, Maninis et al. 2019): {gain.value:+z.1%}{interval}"


def task_sentences(found: TaskTransfer) -> str:
    """The difference, and what the multi-task runs measured about the task."""
    facts = [text for part in (_conflict, _weight, _rows, _checkpoint) for text in part(found)]
    measured = "; ".join(facts)
    return f"{found.task}: {_difference(found)}" + (f" {measured[0].upper()}{measured[1:]}." if measured else "")


def render_markdown(report: Transfer) -> str:
    """The whole report as GitHub Markdown."""
    lines = [
        "# Negative transfer",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "|" + "---|" * LEFT + "---:|" * (len(HEADINGS) - LEFT - 1) + "---|",
        *("| " + " | ".join(_cells(found)) + " |" for found in report.tasks),
        "",
        gain_text(report),
        "",
        *(f"* {task_sentences(found)}" for found in report.tasks),
        *(f"* {note}" for note in all_notes(report)),
        "",
        method_text(report),
        "",
        f"Multi-task runs: {', '.join(f'`{path}`' for path in report.multi)}. "
        f"Single-task runs: {', '.join(f'`{path}`' for path in report.single)}.",
    ]
    return "\n".join(lines) + "\n"


def print_report(report: Transfer, console: Console) -> None:
    """Table, sentences and notes on a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_lines=True)
    for heading in ("task", "multi", "single", "difference", "Holm p", "better / worse", "verdict"):
        words = heading in ("task", "verdict")
        table.add_column(heading, justify="left" if words else "right", no_wrap=heading in ("task", "difference"))
    styles = {"helps": "green", "hurts": "red", "no difference found": ""}
    for found in report.tasks:
        task, metric, together, alone, difference, _, corrected, rows, verdict = _cells(found)
        cells = [f"{task}\n{metric}", together, alone, difference.replace(" [", "\n["), corrected, rows, verdict]
        table.add_row(*(Text(cell) for cell in cells), style=styles[found.verdict])
    console.print(table)
    lines = [task_sentences(found) for found in report.tasks] + all_notes(report)
    for line in [gain_text(report), *(f"- {line}" for line in lines), method_text(report)]:
        console.print(Text(line))


def all_notes(report: Transfer) -> list[str]:
    """What a reader must know besides; synthetic labels included."""
    synthetic = [f"{found.task}: synthetic labels ({found.synthetic})" for found in report.tasks if found.synthetic]
    return [*report.notes, *synthetic]


def _cells(found: TaskTransfer) -> list[str]:
    compared = found.comparison
    return [
        found.task,
        _metric(found),
        _number(compared.first.value),
        _number(compared.second.value),
        _signed(compared.difference),
        p_text(compared.p_value),
        p_text(found.corrected_p),
        f"{compared.better:,} / {compared.worse:,}",
        found.verdict_words,
    ]


def _metric(found: TaskTransfer) -> str:
    return METRIC_LABELS.get(found.comparison.metric, found.comparison.metric)


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _signed(estimate: Estimate) -> str:
    if estimate.value is None:
        return "undefined"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:+z.3f}"
    return f"{estimate.value:+z.3f} [{estimate.low:+z.3f}, {estimate.high:+z.3f}]"


def p_text(p: float) -> str:
    """Two digits that count; never 0 and, below the level, never rounded up to it."""
    if p < 0.001:
        return "< 0.001"
    text = f"{p:.2f}" if p >= 0.1 else f"{p:.2g}"
    return f"{p:.4f}" if float(text) >= LEVEL > p else text


def _difference(found: TaskTransfer) -> str:
    compared = found.comparison
    changed = compared.better + compared.worse
    if not changed and not compared.difference.value:
        value = f"{_number(compared.first.value)} {_metric(found)}"
        return f"no row is answered better or worse ({value}): p 1, {found.verdict}."
    values = f"{_number(compared.first.value)} against {_number(compared.second.value)} {_metric(found)}"
    tests = f"p {p_text(compared.p_value)}, corrected {p_text(found.corrected_p)}: {found.verdict_words}"
    effect = (
        f"{compared.effect_words}: of {compared.rows:,} rows {changed:,} differ, {compared.better:,} for the better"
        if changed
        else f"none of {compared.rows:,} rows is answered better or worse on average over the runs"
    )
    spread = found.range_over_runs
    runs = "" if spread is None else f" Over pairs of runs the difference is {spread[0]:+z.3f} to {spread[1]:+z.3f}."
    return f"{_signed(compared.difference)} ({values}), {tests} ({effect}).{runs}"


def _conflict(found: TaskTransfer) -> Iterator[str]:
    """Which other task's gradient opposed this one's most often."""
    shares = {
        other: _mean(found.multi_facts, lambda facts, other=other: facts.negative.get(other))
        for facts in found.multi_facts
        for other in facts.negative
    }
    known = {other: share for other, share in shares.items() if share is not None}
    if not known:
        return
    steps = sum(facts.measured_steps for facts in found.multi_facts)
    other = max(known, key=known.__getitem__)
    if not known[other]:
        yield f"its gradient opposed no other task's in {steps} measured steps"
        return
    cosine = _mean(found.multi_facts, lambda facts: facts.cosines.get(other))
    mean = "" if cosine is None else f" (mean cosine {cosine:+z.2f})"
    yield f"its gradient opposed {other}'s in {known[other]:.0%} of {steps} measured steps{mean}"


def _weight(found: TaskTransfer) -> Iterator[str]:
    weight = _mean(found.multi_facts, lambda facts: facts.weight)
    share = _mean(found.multi_facts, lambda facts: facts.gradient_share)
    if weight is not None:
        yield f"it got {weight:.0%} of the weight" + (
            "" if share is None else f" and {share:.0%} of the gradients' length"
        )


def _rows(found: TaskTransfer) -> Iterator[str]:
    """What it had read when the checkpoint that was kept was written."""
    together = _mean(found.multi_facts, lambda facts: facts.rows_seen)
    alone = _mean(found.single_facts, lambda facts: facts.rows_seen)
    if together is None or alone is None:
        return
    tokens = [_mean(facts, lambda one: one.tokens) for facts in (found.multi_facts, found.single_facts)]
    text = f"up to the kept checkpoint it drew {together:,.0f} rows, {alone:,.0f} alone"
    if tokens[0] is not None and tokens[1] is not None:
        text += f" (tokens encoded: {tokens[0]:,.0f} for all tasks, {tokens[1]:,.0f} alone)"
    yield text


def _checkpoint(found: TaskTransfer) -> Iterator[str]:
    """What the task lost by sharing one checkpoint with the others."""
    lost = _mean(found.multi_facts, lambda facts: facts.lost_by_sharing)
    if lost is not None:
        own = _steps([facts.own_best_step for facts in found.multi_facts])
        shared = _steps([facts.best_step for facts in found.multi_facts])
        yield f"its own best was step {own}, the shared checkpoint is step {shared} ({-lost:+z.3f} on validation)"
    if stopped := sum(facts.stopped for facts in found.multi_facts):
        runs = len(found.multi_facts)
        yield "it was stopped early" + (f" in {stopped} of {runs} runs" if runs > 1 else "")


def _mean(facts: Sequence[TrainingFacts], number: Callable[[TrainingFacts], float | None]) -> float | None:
    known = [value for one in facts if (value := number(one)) is not None]
    return fmean(known) if known else None


def _steps(steps: Sequence[int | None]) -> str:
    known = sorted({step for step in steps if step is not None})
    return str(known[0]) if len(known) == 1 else f"{known[0]} to {known[-1]}"
