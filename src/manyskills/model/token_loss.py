"""The loss of the tokens of written answers, from the states that predict them.

Shape legend: R rows (one a predicted token), H hidden size.
"""

from __future__ import annotations

import math

import torch

from manyskills.model.cross_entropy import linear_cross_entropy
from manyskills.model.multitask import MultiTaskModel


def token_loss(model: MultiTaskModel, rows_RH: torch.Tensor, targets_R: torch.Tensor) -> torch.Tensor:
    """Sum of the cross-entropies of these tokens in nats, through the model's output layer.

    Args:
        model: Has one.
        rows_RH: States as `AnswerStates` gives them.
        targets_R: The right tokens.
    """
    output = model.output
    assert output is not None
    with model.autocast():
        total, _ = linear_cross_entropy(
            rows_RH, output.weight_VH, targets_R, bias_V=output.bias_V, scale=output.scale, softcap=output.softcap
        )
    return total


def token_chance(model: MultiTaskModel) -> float:
    """The loss of a token where every word of the vocabulary is alike."""
    assert model.output is not None
    return math.log(len(model.output.weight_VH))
