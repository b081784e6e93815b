"""Losses of the analysis tasks, and what each is worth at chance level.

Shape legend: E examples.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def binary_loss(
    logits_E: torch.Tensor, labels_E: torch.Tensor, positive_weight: float = 1.0, focal_gamma: float = 0.0
) -> torch.Tensor:
    """Binary cross-entropy, optionally weighted (positives) and focal (Lin et al. 2017, arXiv 1708.02002, eq. 4).

    Args:
        logits_E: Scores before the sigmoid.
        labels_E: 0.0 or 1.0.
        positive_weight: Factor of the positive rows' terms.
        focal_gamma: 0 is plain cross-entropy; larger counts well-classified rows less.
    """
    losses_E = F.binary_cross_entropy_with_logits(logits_E, labels_E, reduction="none")
    if focal_gamma:
        losses_E = losses_E * (1 - torch.exp(-losses_E)) ** focal_gamma
    weights_E = torch.where(labels_E > 0.5, positive_weight, 1.0)
    return (losses_E * weights_E).mean()


def binary_chance(positive_rate: float, positive_weight: float = 1.0, focal_gamma: float = 0.0) -> float:
    """The least loss of a constant answer: what a head that has learnt only the class balance pays.

    Args:
        positive_rate: Share of positive rows among those drawn.
        positive_weight: As in `binary_loss`.
        focal_gamma: As in `binary_loss`; with it the minimum is found on a grid.
    """
    if not 0 < positive_rate < 1:
        return math.log(2)
    odds = positive_weight * positive_rate / (1 - positive_rate)
    grid = torch.tensor([math.log(odds)]) if not focal_gamma else torch.linspace(-12, 12, 2401)
    positive = torch.stack([binary_loss(g[None], torch.ones(1), positive_weight, focal_gamma) for g in grid])
    negative = torch.stack([binary_loss(g[None], torch.zeros(1), positive_weight, focal_gamma) for g in grid])
    return float((positive_rate * positive + (1 - positive_rate) * negative).min())


def info_nce(similarity_EE: torch.Tensor, queries_E: torch.Tensor, answers_E: torch.Tensor) -> torch.Tensor:
    """Symmetric in-batch contrastive loss (van den Oord et al. 2018, arXiv 1807.03748; both directions averaged).

    Row i's own answer is column i; every other answer of the batch is a negative, except one that belongs to the same
    query or is the same code, which would be a right answer counted as wrong.

    Args:
        similarity_EE: Scaled similarities of every query (row) and every answer (column).
        queries_E: Identity of each row's query.
        answers_E: Identity of each row's answer.
    """
    same_EE = (queries_E[:, None] == queries_E[None, :]) | (answers_E[:, None] == answers_E[None, :])
    same_EE.fill_diagonal_(False)
    logits_EE = similarity_EE.masked_fill(same_EE, float("-inf"))
    targets_E = torch.arange(len(logits_EE), device=logits_EE.device)
    return (F.cross_entropy(logits_EE, targets_E) + F.cross_entropy(logits_EE.T, targets_E)) / 2


def info_nce_chance(examples: int) -> float:
    """The loss when all similarities are equal: the logarithm of the number of candidates."""
    return math.log(max(examples, 2))
