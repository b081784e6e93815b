"""Answers for the rows of a split, and how good they are; whatever computed the answers.

Shape legend: M texts of one task, P size of a side, E examples, Q queries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from manyskills.evaluation.classification import (
    choose_threshold,
    classification_metrics,
    score_classification,
    threshold_metric,
)
from manyskills.evaluation.generation import Generations, generation_metrics, score_generations
from manyskills.evaluation.ranking import ranking_metrics, ranks, score_ranking
from manyskills.evaluation.scores import TaskScores


@dataclass(frozen=True, slots=True)
class Probabilities:
    """Answers of a classifying task."""

    labels_E: np.ndarray | None
    probabilities_E: np.ndarray


@dataclass(frozen=True, slots=True)
class Ranking:
    """Answers of a search: where each query's own answer stands among the split's distinct candidates."""

    ranks_Q: np.ndarray
    candidates: int


Outputs = Probabilities | Ranking | Generations


def search_ranking(sides_MP: np.ndarray, texts_E2: np.ndarray) -> Ranking:
    """Each query's own answer among the distinct candidates of all.

    Args:
        sides_MP: What the head makes of each text.
        texts_E2: Which of them are each example's query and answer.
    """
    candidates_C, answers_Q = np.unique(texts_E2[:, 1], return_inverse=True)
    ranks_Q = ranks(sides_MP[texts_E2[:, 0]], sides_MP[candidates_C], answers_Q)
    return Ranking(ranks_Q, len(candidates_C))


def choose_thresholds(outputs: Mapping[str, Outputs], metrics: Mapping[str, str]) -> dict[str, float]:
    """For each classifying task the threshold that is best for its primary metric on these (validation) answers."""
    return {
        name: choose_threshold(answer.labels_E, answer.probabilities_E, threshold_metric(metrics[name]))
        for name, answer in outputs.items()
        if isinstance(answer, Probabilities) and answer.labels_E is not None
    }


def plain_metrics(outputs: Mapping[str, Outputs], thresholds: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Metrics without intervals, for validation during training."""
    found: dict[str, dict[str, float]] = {}
    for name, answer in outputs.items():
        if isinstance(answer, Ranking):
            found[name] = ranking_metrics(answer.ranks_Q)
        elif isinstance(answer, Generations):
            found[name] = generation_metrics(answer)
        elif answer.labels_E is not None:
            found[name] = classification_metrics(answer.labels_E, answer.probabilities_E, thresholds[name])
    return found


def score(
    outputs: Mapping[str, Outputs], thresholds: Mapping[str, float], *, samples: int, confidence: float, seed: int
) -> dict[str, TaskScores]:
    """Metrics with bootstrap intervals, for reports."""
    options = {"samples": samples, "confidence": confidence, "seed": seed}
    found: dict[str, TaskScores] = {}
    for name, answer in outputs.items():
        if isinstance(answer, Ranking):
            found[name] = score_ranking(answer.ranks_Q, candidates=answer.candidates, **options)
        elif isinstance(answer, Generations):
            found[name] = score_generations(answer, **options)
        elif answer.labels_E is not None:
            found[name] = score_classification(answer.labels_E, answer.probabilities_E, thresholds[name], **options)
    return found
