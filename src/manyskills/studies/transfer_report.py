"""What the negative transfer report holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from manyskills.evaluation.paired import Comparison
from manyskills.evaluation.scores import Estimate
from manyskills.studies.training_facts import TrainingFacts

LEVEL = 0.05
"""Corrected p values below it are a difference."""

Verdict = Literal["helps", "hurts", "no difference found"]


@dataclass(frozen=True, slots=True)
class TaskTransfer:
    """One task: learnt together with the others, and alone.

    Attributes:
        task: Its name.
        synthetic: How its labels were made, if by a program.
        comparison: Multi-task runs (first) against single-task runs (second).
        corrected_p: The p value after Holm's correction for the number of tasks.
        multi_values: The metric of each multi-task run.
        single_values: Of each single-task run.
        multi_facts: What each multi-task run measured about the task.
        single_facts: The same of each single-task run.
    """

    task: str
    synthetic: str | None
    comparison: Comparison
    corrected_p: float
    multi_values: tuple[float | None, ...]
    single_values: tuple[float | None, ...]
    multi_facts: tuple[TrainingFacts, ...]
    single_facts: tuple[TrainingFacts, ...]

    @property
    def verdict(self) -> Verdict:
        """What learning together does, if the corrected p value is below 0.05."""
        difference = self.comparison.difference.value
        if self.corrected_p >= LEVEL or not difference:
            return "no difference found"
        return "helps" if difference > 0 else "hurts"

    @property
    def on_these_runs(self) -> bool:
        """Whether the verdict is about these runs only: one side has one seed, or the range over runs holds 0."""
        one_seed = min(len(self.multi_values), len(self.single_values)) == 1
        spread = self.range_over_runs
        return self.verdict != "no difference found" and (one_seed or spread is None or spread[0] <= 0 <= spread[1])

    @property
    def verdict_words(self) -> str:
        """The verdict, with what it is about where that is less than the recipe."""
        return f"{self.verdict} on these runs" if self.on_these_runs else self.verdict

    @property
    def range_over_runs(self) -> tuple[float, float] | None:
        """The least and the largest difference of one multi-task and one single-task run; None if one is undefined or
        there are only two runs."""
        multi = [value for value in self.multi_values if value is not None]
        single = [value for value in self.single_values if value is not None]
        everywhere = len(multi) == len(self.multi_values) and len(single) == len(self.single_values)
        if not everywhere or len(multi) + len(single) < 3:
            return None
        return min(multi) - max(single), max(multi) - min(single)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with what follows from the rest."""
        return {
            "task": self.task,
            "synthetic": self.synthetic,
            "comparison": self.comparison.to_dict(),
            "corrected_p": self.corrected_p,
            "verdict": self.verdict,
            "on_these_runs": self.on_these_runs,
            "multi_values": list(self.multi_values),
            "single_values": list(self.single_values),
            "range_over_runs": self.range_over_runs and list(self.range_over_runs),
            "multi_facts": [facts.to_dict() for facts in self.multi_facts],
            "single_facts": [facts.to_dict() for facts in self.single_facts],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TaskTransfer:
        """The inverse of `to_dict`."""
        return cls(
            data["task"],
            data["synthetic"],
            Comparison.from_dict(data["comparison"]),
            data["corrected_p"],
            tuple(data["multi_values"]),
            tuple(data["single_values"]),
            tuple(TrainingFacts.from_dict(facts) for facts in data["multi_facts"]),
            tuple(TrainingFacts.from_dict(facts) for facts in data["single_facts"]),
        )


@dataclass(frozen=True, slots=True)
class Transfer:
    """The report.

    Attributes:
        tasks: In the order of the multi-task runs.
        relative_gain: Mean over tasks of (multi - single) / single, a share (Maninis et al. 2019, arXiv 1904.08918,
            Delta_m; every primary metric is better when larger). Undefined where a single-task metric is 0.
        multi: Folders of the multi-task runs.
        single: Folders of the single-task runs.
        confidence: Of all intervals.
        resamples: Behind each interval.
        permutations: Behind each p value.
        notes: What a reader must know besides.
    """

    tasks: tuple[TaskTransfer, ...]
    relative_gain: Estimate
    multi: tuple[str, ...]
    single: tuple[str, ...]
    confidence: float
    resamples: int
    permutations: int
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "format": 1,
            "tasks": [task.to_dict() for task in self.tasks],
            "relative_gain": self.relative_gain.to_dict(),
            "multi": list(self.multi),
            "single": list(self.single),
            "confidence": self.confidence,
            "resamples": self.resamples,
            "permutations": self.permutations,
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Transfer:
        """The inverse of `to_dict`."""
        return cls(
            tuple(TaskTransfer.from_dict(task) for task in data["tasks"]),
            Estimate.from_dict(data["relative_gain"]),
            tuple(data["multi"]),
            tuple(data["single"]),
            data["confidence"],
            data["resamples"],
            data["permutations"],
            tuple(data["notes"]),
        )
