"""What a model answers for the rows of a split, and how good the answers are.

Shape legend: N texts, D size of a vector, E examples, K texts an example, M texts of one task, P size of a side,
Q queries, C candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from manyskills.data.text_set import Examples, TextSet, View, gather
from manyskills.evaluation.classification import (
    choose_threshold,
    classification_metrics,
    score_classification,
    threshold_metric,
)
from manyskills.evaluation.ranking import ranking_metrics, ranks, score_ranking
from manyskills.evaluation.scores import TaskScores
from manyskills.model.heads import BinaryHead
from manyskills.model.multitask import MultiTaskModel

PAIR_BLOCK = 16_384
"""Pairs scored at a time: two sides of 512 floats each are 64 MiB."""


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


Outputs = Probabilities | Ranking


@torch.no_grad()
def task_outputs(
    model: MultiTaskModel, examples: Mapping[str, Examples], vectors_ND: torch.Tensor
) -> dict[str, Outputs]:
    """Answers of every task.

    Args:
        model: Its heads answer.
        examples: Rows by task.
        vectors_ND: One vector for each text of `gather(examples)`, in its order.
    """
    model.eval()
    texts: TextSet = gather(examples)
    return {name: _outputs(model, name, view, vectors_ND) for name, view in texts.views.items()}


def _outputs(model: MultiTaskModel, name: str, view: View, vectors_ND: torch.Tensor) -> Outputs:
    head = model.head(name)
    sides_MP = head.sides(vectors_ND[torch.from_numpy(view.members_M)].to(model.device))
    if isinstance(head, BinaryHead):
        return Probabilities(view.labels_E, _probabilities(head, sides_MP, view.texts_EK))
    return _ranking(sides_MP.cpu().numpy(), view.texts_EK)


def _probabilities(head: BinaryHead, sides_MP: torch.Tensor, texts_EK: np.ndarray) -> np.ndarray:
    rows = [
        head.probabilities(sides_MP, torch.from_numpy(texts_EK[start : start + PAIR_BLOCK]).to(sides_MP.device))
        for start in range(0, len(texts_EK), PAIR_BLOCK)
    ]
    return torch.cat(rows).cpu().double().numpy()


def _ranking(sides_MP: np.ndarray, texts_E2: np.ndarray) -> Ranking:
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
        elif answer.labels_E is not None:
            found[name] = score_classification(answer.labels_E, answer.probabilities_E, thresholds[name], **options)
    return found
