"""What a model answers for the rows of a split.

Shape legend: N texts, D size of a vector, E examples, K texts an example, M texts of one task, P size of a side.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from manyskills.data.text_set import Examples, TextSet, View, gather
from manyskills.evaluation.answers import Outputs, Probabilities, search_ranking
from manyskills.evaluation.classification import relative_log_loss
from manyskills.model.heads import BinaryHead
from manyskills.model.multitask import MultiTaskModel

PAIR_BLOCK_ON_CPU = 512
PAIR_BLOCK_ELSEWHERE = 16_384
"""Pairs scored at a time. On a CPU as many as its caches hold: two sides of 896 floats each are 3.5 MiB, and a block of
64 MiB takes three times as long."""


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


LOSS_BLOCK = 512
"""Examples whose loss is taken at a time: a search compares each with all others of its block."""


@torch.no_grad()
def evaluation_losses(
    model: MultiTaskModel, examples: Mapping[str, Examples], vectors_ND: torch.Tensor, outputs: Mapping[str, Outputs]
) -> dict[str, float]:
    """Each task's loss on the rows of a split, 1 at chance level: the mean over blocks of examples.

    Of a classification it is the log loss of the probabilities that are answered, relative to that of always answering
    the split's share of positives: how positives were weighted or drawn in training does not enter.

    Args:
        model: Its heads answer.
        examples: Rows by task.
        vectors_ND: One vector for each text of `gather(examples)`, in its order.
        outputs: Of `task_outputs`, for the same examples and vectors.
    """
    model.eval()
    views = gather(examples).views
    return {name: _loss(model, name, view, vectors_ND, outputs[name]) for name, view in views.items()}


def _loss(model: MultiTaskModel, name: str, view: View, vectors_ND: torch.Tensor, answers: Outputs) -> float:
    if isinstance(answers, Probabilities):
        assert answers.labels_E is not None
        return relative_log_loss(answers.labels_E, answers.probabilities_E)
    head = model.head(name)
    total = 0.0
    for start in range(0, len(view.texts_EK), LOSS_BLOCK):
        block_EK = view.texts_EK[start : start + LOSS_BLOCK]
        used_U, texts_EK = np.unique(block_EK, return_inverse=True)
        vectors_UD = vectors_ND[torch.from_numpy(view.members_M[used_U])].to(model.device)
        indices_EK = torch.from_numpy(texts_EK.reshape(block_EK.shape)).to(model.device)
        loss, chance = head.loss(vectors_UD, indices_EK, None)
        total += loss.item() / chance * len(block_EK)
    return total / len(view.texts_EK)


def _outputs(model: MultiTaskModel, name: str, view: View, vectors_ND: torch.Tensor) -> Outputs:
    head = model.head(name)
    sides_MP = head.sides(vectors_ND[torch.from_numpy(view.members_M)].to(model.device))
    if isinstance(head, BinaryHead):
        return Probabilities(view.labels_E, _probabilities(head, sides_MP, view.texts_EK))
    return search_ranking(sides_MP.cpu().numpy(), view.texts_EK)


def _probabilities(head: BinaryHead, sides_MP: torch.Tensor, texts_EK: np.ndarray) -> np.ndarray:
    size = PAIR_BLOCK_ON_CPU if sides_MP.device.type == "cpu" else PAIR_BLOCK_ELSEWHERE
    probabilities_E = torch.empty(len(texts_EK), dtype=torch.float64)
    for start in range(0, len(texts_EK), size):
        block = slice(start, start + size)
        probabilities_E[block] = head.probabilities(sides_MP, torch.from_numpy(texts_EK[block]).to(sides_MP.device))
    return probabilities_E.numpy()
