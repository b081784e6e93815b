"""Warnings of a run: a task's weight collapses, a task starves, a task worsens while others improve.

The rules are means and counts over short windows, so that a single odd step says nothing. Each task is warned of once a
kind. All state is JSON-ready and travels with the checkpoint: a resumed run neither repeats nor forgets a warning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any, Literal

from manyskills.data.prompted import PromptExamples
from manyskills.data.text_set import Examples
from manyskills.training.balancing import collapsed

RECENT = 5
"""Steps (collapse) or measured steps (starvation) with the task that are averaged."""
STARVED = 0.1
"""Of an equal share of the update's length: less is starvation."""
LEARNT = 0.1
"""Of the loss at chance level: a task below it has short gradients because there is little left to learn."""
WINDOW = 50
"""Steps over which the sampling is looked at."""
RARE = 0.1
"""Share of them that holds a starved task at most."""
LEAST_DROP = 0.02
"""Points of the primary metric that a task must fall to count as worse, however many rows it is measured on."""

Kind = Literal["collapse", "starvation", "worsening"]


@dataclass(frozen=True, slots=True)
class ConflictWarning:
    """What was seen of which task, when, and what helps."""

    kind: Kind
    task: str
    step: int
    text: str
    hint: str

    @property
    def sentence(self) -> str:
        """For people."""
        return f"warning: step {self.step}: {self.text} ({self.hint})"


@dataclass(slots=True)
class Watch:
    """Is fed by the training loop; each method returns what is to be announced.

    Attributes:
        warnings: All so far.
        weights: By task, its effective weight in the last `RECENT` steps that held it.
        lengths: By task, its share of the update's length in the last `RECENT` measured steps that held it, 1 being an
            equal share.
        losses: By task, its loss in the same steps, 1 being chance level.
        present: The tasks of the last `WINDOW` steps.
        best: By task, its best validation value.
        best_step: By task, the step of it.
        low: By task, how many validations in a row were clearly below its best.
    """

    warnings: list[ConflictWarning] = field(default_factory=list)
    weights: dict[str, list[float]] = field(default_factory=dict)
    lengths: dict[str, list[float]] = field(default_factory=dict)
    losses: dict[str, list[float]] = field(default_factory=dict)
    present: list[list[str]] = field(default_factory=list)
    best: dict[str, float] = field(default_factory=dict)
    best_step: dict[str, int] = field(default_factory=dict)
    low: dict[str, int] = field(default_factory=dict)

    def stepped(self, step: int, tasks: Sequence[str], active: Sequence[str]) -> list[ConflictWarning]:
        """Note a step.

        Args:
            step: Its number, counted from 1.
            tasks: Those that it held.
            active: Those that were drawn from.
        """
        self.present = [*self.present, list(tasks)][-WINDOW:]
        return self._rare(step, active)

    def weighed(self, step: int, weights: Mapping[str, float]) -> list[ConflictWarning]:
        """Note the weights of a step's losses. Those of gradients are no sign of a collapse: a rule may give a long
        gradient a small one; `measured` is for them.

        Args:
            step: Its number, counted from 1.
            weights: Effective weights of the tasks that it held.
        """
        recent = {task: _append(self.weights, task, weight) for task, weight in weights.items()}
        means = {task: fmean(values) for task, values in recent.items() if len(values) == RECENT}
        found: list[ConflictWarning] = []
        for task in collapsed(means):
            text = f"the weight of {task} has collapsed to {means[task]:.2%}; it is hardly trained any more"
            found += self._warn("collapse", task, step, text, "balancing=uniform does not do this")
        return found

    def _rare(self, step: int, active: Sequence[str]) -> list[ConflictWarning]:
        """Half of the average task's steps is still no starvation: of twelve tasks in turn, each is rare."""
        counts = {task: sum(task in tasks for tasks in self.present) for task in active}
        found: list[ConflictWarning] = []
        for task, count in counts.items():
            if len(self.present) == WINDOW and count < RARE * WINDOW and count < fmean(counts.values()) / 2:
                text = f"{task} starves: it was in {count} of the last {WINDOW} steps"
                hint = "sampling=round_robin draws all tasks alike, a higher sampling.temperature draws it more often"
                found += self._warn("starvation", task, step, text, hint)
        return found

    def measured(
        self, step: int, norms: Mapping[str, float], factors: Mapping[str, float], losses: Mapping[str, float]
    ) -> list[ConflictWarning]:
        """Note the gradients of a measured step.

        Args:
            step: Its number, counted from 1.
            norms: By task, the length of the balanced loss's gradient on the shared module.
            factors: By task, what this gradient counted in the update.
            losses: By task, its loss relative to chance level.
        """
        parts = {task: abs(factors[task]) * norm for task, norm in norms.items()}
        total = sum(parts.values())
        if not total or not math.isfinite(total):
            return []
        found: list[ConflictWarning] = []
        for task, part in parts.items():
            shares = _append(self.lengths, task, part / total * len(parts))
            losses_of_task = _append(self.losses, task, losses[task])
            if len(shares) == RECENT and fmean(shares) < STARVED and fmean(losses_of_task) > LEARNT:
                equal = 1 / len(parts)
                made = f"its gradient makes {fmean(shares) * equal:.2%} of the update, an equal share is {equal:.0%}"
                hint = "balancing=db_mtl brings all gradients to one length"
                found += self._warn("starvation", task, step, f"{task} starves: {made}", hint)
        return found

    def validated(self, step: int, primary: Mapping[str, float], rows: Mapping[str, int]) -> list[ConflictWarning]:
        """Note a validation; the first one, before any step, too.

        A task has worsened when two validations in a row are below its best by more than noise explains (`clear_drop`),
        and at least half of the other tasks have reached a new best since it had its own.

        Args:
            step: Updates done.
            primary: By task, its primary metric.
            rows: By task, how many rows that metric rests on (`metric_rows`).
        """
        for task, value in primary.items():
            best = self.best.get(task, -math.inf)
            if value > best:
                self.best[task], self.best_step[task], self.low[task] = value, step, 0
            else:
                fell = best - value > clear_drop(best, rows[task])
                self.low[task] = self.low[task] + 1 if fell else 0
        found: list[ConflictWarning] = []
        for task, value in primary.items():
            since = self.best_step[task]
            better = [other for other in primary if self.best_step[other] > since]
            if self.low[task] >= 2 and better and 2 * len(better) >= len(primary) - 1:
                text = (
                    f"{task} has worsened from {self.best[task]:.4f} at step {since} to {value:.4f}, "
                    f"while {' and '.join(better)} improved"
                )
                hint = "early_stopping.keep_task_best=true keeps its own best; for more, see docs/training.md"
                found += self._warn("worsening", task, step, text, hint)
        return found

    def _warn(self, kind: Kind, task: str, step: int, text: str, hint: str) -> list[ConflictWarning]:
        """Nothing if it was said before."""
        if any((known.kind, known.task) == (kind, task) for known in self.warnings):
            return []
        self.warnings.append(ConflictWarning(kind, task, step, text, hint))
        return self.warnings[-1:]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Watch:
        """The inverse of `to_dict`."""
        return cls(**{**data, "warnings": [ConflictWarning(**entry) for entry in data["warnings"]]})


def metric_rows(examples: Mapping[str, Examples | PromptExamples]) -> dict[str, int]:
    """How many rows each task's primary metric rests on: for F1 the positive ones, else all."""
    return {
        name: int((part.labels_E == 1).sum())
        if part.labels_E is not None and part.task.primary_metric == "f1"
        else len(part)
        for name, part in examples.items()
    }


def clear_drop(best: float, rows: int) -> float:
    """How far a metric has to fall to be worse: two standard errors of a difference, and `LEAST_DROP` at least.

    The standard error is the binomial one. No mean of numbers between 0 and 1 has a greater one, and F1 is taken for a
    mean over the positive rows. Two successes and two failures are added (Agresti and Coull 1998), so that a perfect
    score on few rows is not taken for certain. Validations share their rows, so their difference varies less than this;
    that pays for comparing with the highest of many.
    """
    share = (rows * best + 2) / (rows + 4)
    return max(LEAST_DROP, 2 * math.sqrt(2 * share * (1 - share) / (rows + 4)))


def _append(values: dict[str, list[float]], task: str, value: float) -> list[float]:
    """The last `RECENT` values of the task, this one included."""
    values[task] = [*values.get(task, []), value][-RECENT:]
    return values[task]
