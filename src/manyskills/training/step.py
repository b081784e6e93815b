"""One training step: a set of unique texts, every task's loss on its view of the vectors, one update.

Shape legend: N texts of the step, M texts of one task, K tasks, D size of a vector, P parameters of the shared module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from manyskills.data.text_set import Examples, Teaching, TextSet, View, gather
from manyskills.errors import UserError
from manyskills.model.heads import Lesson
from manyskills.model.multitask import MultiTaskModel
from manyskills.training.balancing import Combined, Rule, TaskLoss, equal
from manyskills.training.processes import Processes
from manyskills.training.task_gradients import TaskGradients
from manyskills.training.vectors import VectorSource, seeded

HEADS = 2**32 - 1
"""Stands where a chunk's number stands, in the key of the heads' random numbers; no step has so many chunks."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step measured, by task, and which texts it encoded.

    Attributes:
        losses: As they are.
        chances: Their values at chance level.
        scaled_losses: 1 at chance level.
        factors: What each task's loss counts in the shared module's gradient.
        gradients: Of the tasks' losses on the shared module, as the rule sees them; None where they were not measured.
        unique_N: Indices of the texts in the store.
    """

    losses: dict[str, float]
    chances: dict[str, float]
    scaled_losses: dict[str, float]
    factors: dict[str, float]
    gradients: TaskGradients | None
    unique_N: np.ndarray


def accumulate_gradients(
    model: MultiTaskModel,
    source: VectorSource,
    batch: Mapping[str, Examples],
    rule: Rule,
    seed: int,
    *,
    measure: bool = False,
    processes: Processes | None = None,
) -> StepResult:
    """Forward and backward of one step; gradients are left in the parameters.

    The gradient of all losses with respect to the vectors is taken first and then sent through the backbone, so the
    backbone is differentiated once, whatever the number of tasks. Where each task's gradient is wanted, chunks hold the
    texts of the same tasks only: a text that one task uses, as nearly all are, is still differentiated once.

    Args:
        model: In training mode.
        source: Gives the vectors and takes their gradient.
        batch: The step's examples by task.
        rule: Makes one gradient of all.
        seed: Of this step's random numbers.
        measure: Take each task's gradient on the shared module, also if the rule does not need it.
        processes: Over which losses are averaged before the rule sees them.

    Raises:
        UserError: A loss is not finite.
    """
    texts = gather(batch)
    apart = (measure or rule.on_gradients) and model.trains_backbone
    vectors_ND = source.forward(texts.unique_N, seed, texts.users_N() if apart else None).requires_grad_(True)
    with seeded(model.device, seed, HEADS):
        losses = task_losses(model, texts, vectors_ND)
    _refuse_not_finite(losses)
    gradients = None
    if apart:
        by_task = {name: _backward_alone(rule.seen(loss), vectors_ND) for name, loss in losses.items()}
        gradients = source.backward_by_task(by_task)
        factors = _combine(model, rule, gradients, balanced_losses(rule, losses, processes), processes)
    else:
        factors = _weigh(rule, balanced_losses(rule, losses, processes))
        torch.stack([factors[name] * rule.seen(loss) for name, loss in losses.items()]).sum().backward()
        if model.trains_backbone:
            assert vectors_ND.grad is not None
            source.backward(vectors_ND.grad)
    return StepResult(
        losses={name: loss.value.item() for name, loss in losses.items()},
        chances={name: loss.chance for name, loss in losses.items()},
        scaled_losses={name: loss.scaled.item() for name, loss in losses.items()},
        factors=factors,
        gradients=gradients,
        unique_N=texts.unique_N,
    )


@torch.no_grad()
def repeat_losses(
    model: MultiTaskModel, source: VectorSource, batch: Mapping[str, Examples], rule: Rule, seed: int, *, apart: bool
) -> dict[str, TaskLoss]:
    """The losses of a step's examples under the weights of now, with the step's own random numbers.

    Args:
        model: In training mode.
        source: Gives the vectors.
        batch: As in the step.
        rule: As in the step.
        seed: As in the step.
        apart: Whether each task's gradient was taken in the step: its chunks were then others.
    """
    texts = gather(batch)
    apart = (apart or rule.on_gradients) and model.trains_backbone
    vectors_ND = source.values(texts.unique_N, seed, texts.users_N() if apart else None)
    with seeded(model.device, seed, HEADS):
        return task_losses(model, texts, vectors_ND)


def measure_gradients(
    model: MultiTaskModel, source: VectorSource, batch: Mapping[str, Examples], rule: Rule, seed: int
) -> TaskGradients:
    """Each task's gradient on the shared module for some examples; no parameter's gradient is touched.

    Args:
        model: In training mode; it has a shared module.
        source: Gives the vectors and takes their gradient.
        batch: Examples by task.
        rule: As in the step: it says which losses are balanced.
        seed: Of the random numbers.
    """
    texts = gather(batch)
    vectors_ND = source.forward(texts.unique_N, seed, texts.users_N()).requires_grad_(True)
    with seeded(model.device, seed, HEADS):
        losses = task_losses(model, texts, vectors_ND)
    by_task = {name: torch.autograd.grad(rule.seen(loss), vectors_ND)[0] for name, loss in losses.items()}
    return source.backward_by_task(by_task)


def task_losses(model: MultiTaskModel, texts: TextSet, vectors_ND: torch.Tensor) -> dict[str, TaskLoss]:
    """Every task's loss on its view of the vectors."""
    return {name: _task_loss(model, name, view, vectors_ND) for name, view in texts.views.items()}


def balanced_losses(rule: Rule, losses: Mapping[str, TaskLoss], processes: Processes | None) -> dict[str, float]:
    """The losses as the rule sees them, the mean over all processes: they differ in the last digits where devices do,
    and a rule's state may not."""
    values_K = torch.stack([rule.seen(loss).detach() for loss in losses.values()]).double()
    if processes is not None and processes.count > 1:
        values_K = processes.sum(values_K) / processes.count
    return dict(zip(losses, values_K.tolist(), strict=True))


def _task_loss(model: MultiTaskModel, name: str, view: View, vectors_ND: torch.Tensor) -> TaskLoss:
    device = vectors_ND.device
    vectors_MD = vectors_ND[torch.from_numpy(view.members_M).to(device)]
    texts_EK = torch.from_numpy(view.texts_EK).to(device)
    labels_E = None if view.labels_E is None else torch.from_numpy(view.labels_E).to(device)
    lesson = None if view.teaching is None else _lesson(view.teaching, device)
    return TaskLoss(*model.head(name).loss(vectors_MD, texts_EK, labels_E, lesson))


def _lesson(teaching: Teaching, device: torch.device) -> Lesson:
    return Lesson(torch.from_numpy(teaching.answers()).to(device), teaching.weight, teaching.temperature)


def _weigh(rule: Rule, losses: Mapping[str, float]) -> dict[str, float]:
    """A rule on gradients has nothing to do where no gradient reaches a shared module."""
    return equal(losses) if rule.on_gradients else rule.weigh(losses)


def _backward_alone(loss: torch.Tensor, vectors_ND: torch.Tensor) -> torch.Tensor:
    """The gradient of one task's loss with respect to the vectors; that of its head is left in its parameters."""
    vectors_ND.grad = None
    loss.backward()
    assert vectors_ND.grad is not None
    return vectors_ND.grad


def _combine(
    model: MultiTaskModel,
    rule: Rule,
    gradients: TaskGradients,
    losses: Mapping[str, float],
    processes: Processes | None,
) -> dict[str, float]:
    """Leave the rule's gradient in the parameters of the shared module and of the heads; what each task counted."""
    if rule.on_gradients:
        combined = _as_main(rule.combine(gradients.values_KP, losses), processes)
    else:
        factors = rule.weigh(losses)
        combined = Combined(gradients.weighted(factors), factors, factors)
    gradients.assign(combined.gradient_P)
    for name, factor in combined.head_factors.items():
        for p in model.head(name).parameters():
            if p.grad is not None:
                p.grad.mul_(factor)
    return combined.factors


def _as_main(combined: Combined, processes: Processes | None) -> Combined:
    """Every process takes the main one's: inner products differ in the last digits where devices do, and what a rule
    makes of them may then differ in more."""
    if processes is None or processes.count == 1:
        return combined
    processes.copy_from_main([combined.gradient_P])
    factors, head_factors = processes.agree([combined.factors, combined.head_factors])
    return Combined(combined.gradient_P, factors, head_factors)


def _refuse_not_finite(losses: Mapping[str, TaskLoss]) -> None:
    wrong = [name for name, loss in losses.items() if not torch.isfinite(loss.value)]
    if wrong:
        hint = "lower learning_rate or head_learning_rate, lengthen warmup_ratio, or train without bf16"
        raise UserError(f"the loss of {', '.join(wrong)} is not a finite number", hint)
