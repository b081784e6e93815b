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
    logits_EE = similarity_EE.masked_fill(_no_negatives(queries_E, answers_E), float("-inf"))
    targets_E = torch.arange(len(logits_EE), device=logits_EE.device)
    return (F.cross_entropy(logits_EE, targets_E) + F.cross_entropy(logits_EE.T, targets_E)) / 2


def soft_binary_loss(logits_E: torch.Tensor, teacher_E: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Cross-entropy against a teacher's probabilities (Hinton et al. 2015, arXiv 1503.02531, section 2).

    Times the square of the temperature, so that gradients keep their size when it changes (same place).

    Args:
        logits_E: Of the student.
        teacher_E: Of the teacher.
        temperature: Divides both.
    """
    targets_E = torch.sigmoid(teacher_E / temperature)
    return temperature**2 * F.binary_cross_entropy_with_logits(logits_E / temperature, targets_E)


def soft_info_nce(
    similarity_EE: torch.Tensor,
    teacher_EE: torch.Tensor,
    queries_E: torch.Tensor,
    answers_E: torch.Tensor,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Kullback-Leibler divergence of the student's from the teacher's distribution over the batch's answers, and over
    its queries; both directions averaged, times the square of the temperature as in `soft_binary_loss`.

    Args:
        similarity_EE: The student's scaled similarities of every query (row) and every answer (column).
        teacher_EE: The teacher's.
        queries_E: Identity of each row's query; what is no negative in `info_nce` is no candidate here.
        answers_E: Identity of each row's answer.
        temperature: Divides both similarities.
    """
    same_EE = _no_negatives(queries_E, answers_E)
    student_EE, teacher_EE = similarity_EE / temperature, teacher_EE / temperature
    both = _divergence(student_EE, teacher_EE, same_EE) + _divergence(student_EE.T, teacher_EE.T, same_EE)
    return temperature**2 * both / 2


def _divergence(student_EE: torch.Tensor, teacher_EE: torch.Tensor, without_EE: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) of the softmax of each row, the mean over rows."""
    log_p_EE = teacher_EE.masked_fill(without_EE, float("-inf")).log_softmax(-1)
    log_q_EE = student_EE.masked_fill(without_EE, float("-inf")).log_softmax(-1)
    difference_EE = (log_p_EE - log_q_EE).masked_fill(without_EE, 0.0)  # where both are minus infinity
    return (log_p_EE.exp() * difference_EE).sum(-1).mean()


def _no_negatives(queries_E: torch.Tensor, answers_E: torch.Tensor) -> torch.Tensor:
    """Pairs of rows with the same query or the same answer, but for each row with itself; symmetric."""
    same_EE = (queries_E[:, None] == queries_E[None, :]) | (answers_E[:, None] == answers_E[None, :])
    return same_EE.fill_diagonal_(False)


def info_nce_chance(examples: int) -> float:
    """The loss when all similarities are equal: the logarithm of the number of candidates."""
    return math.log(max(examples, 2))
