"""One training step: a set of unique texts, every task's loss on its view of the vectors, one update.

Shape legend: N texts of the step, M texts of one task, D size of a vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from manyskills.data.text_set import Examples, TextSet, View, gather
from manyskills.errors import UserError
from manyskills.model.multitask import MultiTaskModel
from manyskills.training.balancing import Balancing, TaskLoss
from manyskills.training.vectors import VectorSource, seeded

HEADS = 2**32 - 1
"""Stands where a chunk's number stands, in the key of the heads' random numbers; no step has so many chunks."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step measured, by task, and which texts it encoded."""

    losses: dict[str, float]
    scaled_losses: dict[str, float]
    weights: dict[str, float]
    unique_N: np.ndarray


def accumulate_gradients(
    model: MultiTaskModel,
    source: VectorSource,
    batch: Mapping[str, Examples],
    balancing: Balancing,
    seed: int,
) -> StepResult:
    """Forward and backward of one step; gradients are left in the parameters.

    The gradient of all losses with respect to the vectors is taken first and then sent through the backbone, so the
    backbone is differentiated once, whatever the number of tasks.

    Args:
        model: In training mode.
        source: Gives the vectors and takes their gradient.
        batch: The step's examples by task.
        balancing: Makes one loss of all.
        seed: Of this step's random numbers.

    Raises:
        UserError: A loss is not finite.
    """
    texts = gather(batch)
    vectors_ND = source.forward(texts.unique_N, seed).requires_grad_(True)
    with seeded(model.device, seed, HEADS):
        losses = task_losses(model, texts, vectors_ND)
    total = balancing.combine(losses)
    _refuse_not_finite(losses)
    total.backward()
    if model.trains_backbone:
        assert vectors_ND.grad is not None
        source.backward(vectors_ND.grad)
    return StepResult(
        losses={name: loss.value.item() for name, loss in losses.items()},
        scaled_losses={name: loss.scaled.item() for name, loss in losses.items()},
        weights=balancing.weights(),
        unique_N=texts.unique_N,
    )


def task_losses(model: MultiTaskModel, texts: TextSet, vectors_ND: torch.Tensor) -> dict[str, TaskLoss]:
    """Every task's loss on its view of the vectors."""
    return {name: _task_loss(model, name, view, vectors_ND) for name, view in texts.views.items()}


def _task_loss(model: MultiTaskModel, name: str, view: View, vectors_ND: torch.Tensor) -> TaskLoss:
    device = vectors_ND.device
    vectors_MD = vectors_ND[torch.from_numpy(view.members_M).to(device)]
    texts_EK = torch.from_numpy(view.texts_EK).to(device)
    labels_E = None if view.labels_E is None else torch.from_numpy(view.labels_E).to(device)
    return TaskLoss(*model.head(name).loss(vectors_MD, texts_EK, labels_E))


def _refuse_not_finite(losses: Mapping[str, TaskLoss]) -> None:
    wrong = [name for name, loss in losses.items() if not torch.isfinite(loss.value)]
    if wrong:
        hint = "lower learning_rate or head_learning_rate, lengthen warmup_ratio, or train without bf16"
        raise UserError(f"the loss of {', '.join(wrong)} is not a finite number", hint)
