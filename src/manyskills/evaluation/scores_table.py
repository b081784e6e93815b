"""All metrics of one system, for `manyskills evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from manyskills.evaluation.results import metric_label
from manyskills.evaluation.scores import Estimate, TaskScores
from manyskills.evaluation.text import CODEBLEU_HINT, lacks_codebleu
from manyskills.tasks import get_task

if TYPE_CHECKING:
    from rich.console import Console


def print_scores(scores: Mapping[str, TaskScores], synthetic: Mapping[str, str], console: Console) -> None:
    """One block a task: every metric with its interval, the rows it rests on and the threshold."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    table.add_column("task", no_wrap=True)
    table.add_column("metric")
    table.add_column("value [confidence interval]", justify="right")
    table.add_column("rests on")
    for task, found in scores.items():
        for number, (metric, estimate) in enumerate(found.metrics.items()):
            first = number == 0
            table.add_row(
                task if first else "",
                metric_label(metric),
                _text(estimate),
                _basis(found) if first else "",
            )
        table.add_section()
    console.print(table)
    for task, how in synthetic.items():
        if task in scores:
            console.print(f"- {task}: synthetic labels ({how})")
    if any("bleu" in found.metrics and lacks_codebleu(get_task(task)) for task, found in scores.items()):
        console.print(f"- {CODEBLEU_HINT}", markup=False)


def _text(estimate: Estimate) -> str:
    if estimate.value is None:
        return "undefined"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.4f}"
    return f"{estimate.value:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]"


def _basis(scores: TaskScores) -> str:
    parts = [f"{scores.rows:,} rows"]
    if scores.positives is not None:
        parts.append(f"{scores.positives:,} positive")
    if scores.candidates is not None:
        parts.append(f"{scores.candidates:,} candidates")
    if scores.threshold is not None:
        parts.append(f"threshold {scores.threshold:.4f}")
    return ", ".join(parts)
