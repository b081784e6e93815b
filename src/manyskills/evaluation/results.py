"""Reading `results.json`: the order and names of systems, and which split and number a table or plot shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from manyskills.evaluation.scores import Estimate, TaskScores
from manyskills.tasks import SplitName

SYSTEMS: dict[str, str] = {
    "module": "module",
    "task_best": "module, each task's own best",
    "frozen": "frozen + heads",
    "untrained": "untrained",
    "floor": "TF-IDF floor",
    "copy": "source copied",
}
"""What is compared, in the order it is shown, and what people read."""

METRIC_LABELS: dict[str, str] = {
    "accuracy": "accuracy",
    "f1": "F1",
    "precision": "precision",
    "recall": "recall",
    "mcc": "MCC",
    "roc_auc": "ROC-AUC",
    "average_precision": "average precision",
    "ece": "calibration error",
    "brier": "Brier score",
    "mrr": "MRR",
    "ndcg@10": "NDCG@10",
    "bleu": "BLEU",
    "chrf": "chrF",
    "rouge_l": "ROUGE-L",
    "exact_match": "exact match",
    "codebleu": "CodeBLEU",
    "codebleu_ngram": "CodeBLEU, n-grams",
    "codebleu_weighted": "CodeBLEU, keywords",
    "codebleu_syntax": "CodeBLEU, syntax",
    "codebleu_dataflow": "CodeBLEU, data flow",
    "codebleu_dataflow_rows": "rows with data flow",
    "token_probability": "token probability",
}


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What is shown of one task.

    Attributes:
        task: Its name.
        metric: The primary metric's key.
        split: `test` if every system that was run has test scores, else `valid`.
        synthetic: How the labels were made, if not by people or tools on real code.
        scores: All scores by system, in the order of `SYSTEMS`; systems from elsewhere follow.
    """

    task: str
    metric: str
    split: SplitName
    synthetic: str | None
    scores: dict[str, TaskScores]

    @property
    def metric_label(self) -> str:
        """The metric as people write it."""
        return metric_label(self.metric)

    def estimate(self, system: str) -> Estimate:
        """The primary metric of a system; undefined if it was not run."""
        scores = self.scores.get(system)
        return Estimate(None) if scores is None else scores.metrics.get(self.metric, Estimate(None))

    @property
    def best(self) -> str | None:
        """The system with the highest value; the first of equals; None if nothing is defined."""
        values = {name: value for name in self.scores if (value := self.estimate(name).value) is not None}
        return max(values, key=values.__getitem__, default=None)


def task_results(results: Mapping[str, Any]) -> Iterator[TaskResult]:
    """The tasks of a `results.json`, in its order."""
    for task, entry in results["tasks"].items():
        systems = {name: entry["systems"][name] for name in _ordered(entry["systems"])}
        split: SplitName = "test" if all(found.get("test") for found in systems.values()) else "valid"
        scores = {name: TaskScores.from_dict(found[split]) for name, found in systems.items() if found.get(split)}
        yield TaskResult(task, entry["primary_metric"], split, entry.get("synthetic"), scores)


def shown_systems(found: list[TaskResult]) -> list[str]:
    """Every system that at least one task has, in order."""
    return _ordered({name for result in found for name in result.scores})


def metric_label(metric: str) -> str:
    """The metric as people read it; `bleu/python` is that of one variant of a generating task."""
    name, _, variant = metric.partition("/")
    label = METRIC_LABELS.get(name, name)
    return f"{label} ({variant})" if variant else label


def system_label(name: str) -> str:
    """The system as people read it."""
    return SYSTEMS.get(name, name)


def _ordered(names: Any) -> list[str]:
    return [name for name in SYSTEMS if name in names] + sorted(set(names) - set(SYSTEMS))
