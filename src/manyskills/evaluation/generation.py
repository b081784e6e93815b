"""How good texts are that a model wrote: each variant of the task by itself, and the mean over the variants.

A task's languages or directions differ in difficulty and number of rows; the mean gives each the same weight, whatever
their rows. Metrics are those of `manyskills.evaluation.text`, from sums of rows' statistics, so that a resample is a
weighted sum: 1,000 resamples of 1,000 rows take some tens of milliseconds for all metrics together.

Shapes: N rows of one variant, K statistics of all metrics, B resamples of one block, S resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from manyskills.errors import UserError
from manyskills.evaluation.bootstrap import Floats, estimates, resample_counts
from manyskills.evaluation.scores import TaskScores
from manyskills.evaluation.text import CODEBLEU_HINT, TextMetric, lacks_codebleu, metrics_for
from manyskills.tasks import Task

SLOW = frozenset({"codebleu"})
"""Metrics that parse every text: not computed at every validation unless they decide."""


@dataclass(frozen=True, slots=True)
class Generations:
    """Answers of a generating task, row by row.

    Attributes:
        predictions: What was written.
        references: What should have been.
        variants: The name of each row's variant.
        task: Says what the variants are and which metric decides.
    """

    predictions: list[str]
    references: list[str]
    variants: list[str]
    task: Task

    def __post_init__(self) -> None:
        if not len(self.predictions) == len(self.references) == len(self.variants):
            raise ValueError(
                f"{len(self.predictions)} predictions, {len(self.references)} references, {len(self.variants)} variants"
            )
        if unknown := set(self.variants) - {variant.name for variant in self.task.variants}:
            raise ValueError(f"{self.task.name} has no variants {sorted(unknown)}")


def generation_metrics(answers: Generations) -> dict[str, float]:
    """The task's primary metric and all that are quick: `bleu` is the mean over variants, `bleu/<variant>` one's own.

    NaN is undefined. A metric that a variant does not have is given for the others only, without a mean.

    Raises:
        UserError: There are no rows, or the primary metric needs packages that are not installed.
    """
    parts = _parts(answers, without=SLOW - {answers.task.primary_metric.partition("_")[0]})
    return _point(parts, answers.task)


def score_generations(answers: Generations, *, samples: int, confidence: float, seed: int) -> TaskScores:
    """All metrics with bootstrap intervals over the rows of each variant; `samples` of 0 gives no intervals.

    Systems scored with the same seed are resampled alike. So are variants of as many rows, which keeps the two
    directions of a translation together: their rows are of the same methods.

    Raises:
        UserError: There are no rows, or the primary metric needs packages that are not installed.
    """
    parts = _parts(answers, without=frozenset())
    values = _point(parts, answers.task)
    replicates = _values(parts, [_resampled(part, samples, seed) for part in parts]) if samples else {}
    metrics = estimates(values, replicates, confidence)
    return TaskScores(metrics, None, len(answers.predictions), None, None)


@dataclass(frozen=True, slots=True)
class _Part:
    """One variant: its metrics, and the statistics of its rows, metric beside metric."""

    variant: str
    metrics: Sequence[TextMetric]
    widths: Sequence[int]
    statistics_NK: Floats

    def values(self, sums_BK: Floats) -> dict[str, Floats]:
        """Every metric, from sums of the statistics."""
        columns = np.split(sums_BK, np.cumsum(self.widths)[:-1], axis=1)
        found: dict[str, Floats] = {}
        for metric, sums in zip(self.metrics, columns, strict=True):
            found |= metric.values(sums)
        return found


def _parts(answers: Generations, *, without: frozenset[str]) -> list[_Part]:
    """The variants that have rows, in the task's order."""
    if not answers.predictions:
        raise UserError(
            f"there are no rows of {answers.task.name} to score", "check the split with `manyskills data check`"
        )
    found = []
    for variant in answers.task.variants:
        rows = [row for row, name in enumerate(answers.variants) if name == variant.name]
        if rows:
            predictions = [answers.predictions[row] for row in rows]
            references = [answers.references[row] for row in rows]
            metrics = [metric for name, metric in metrics_for(variant).items() if name not in without]
            statistics = [metric.statistics(predictions, references) for metric in metrics]
            widths = [part_NK.shape[1] for part_NK in statistics]
            found.append(_Part(variant.name, metrics, widths, np.concatenate(statistics, axis=1)))
    return found


def _point(parts: Sequence[_Part], task: Task) -> dict[str, float]:
    """The values on all rows; the primary metric must be among them."""
    found = _values(parts, [part.statistics_NK.sum(axis=0, keepdims=True) for part in parts])
    if task.primary_metric not in found:
        known = ", ".join(name for name in found if "/" not in name)
        hint = CODEBLEU_HINT if lacks_codebleu(task) else f"choose one of: {known}"
        raise UserError(f"{task.name} cannot be measured by {task.primary_metric}", hint)
    return {name: float(value_1[0]) for name, value_1 in found.items()}


def _resampled(part: _Part, samples: int, seed: int) -> Floats:
    """Sums of the statistics of each resample."""
    counts = resample_counts(len(part.statistics_NK), samples, seed)
    return np.concatenate([counts_BN @ part.statistics_NK for counts_BN in counts])


def _values(parts: Sequence[_Part], sums: Sequence[Floats]) -> dict[str, Floats]:
    """Means over variants, then each variant's own."""
    own = {part.variant: part.values(sums_BK) for part, sums_BK in zip(parts, sums, strict=True)}
    names = list(dict.fromkeys(name for values in own.values() for name in values))
    means = {
        name: np.mean([values[name] for values in own.values()], axis=0)
        for name in names
        if all(name in values for values in own.values())
    }
    return means | {
        f"{name}/{variant}": values[name] for name in names for variant, values in own.items() if name in values
    }
