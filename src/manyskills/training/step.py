"""One training step: a set of unique texts and of prompts, every task's loss, one update.

Shape legend: N texts of the step, K tasks, P parameters of the shared module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from manyskills.errors import UserError
from manyskills.model.multitask import MultiTaskModel
from manyskills.training.balancing import Combined, Rule, TaskLoss, equal
from manyskills.training.forward import Batch, Forward, Sources
from manyskills.training.processes import Processes
from manyskills.training.task_gradients import TaskGradients


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step measured, by task, and which texts it encoded.

    Attributes:
        losses: As they are.
        chances: Their values at chance level.
        scaled_losses: 1 at chance level.
        factors: What each task's loss counts in the shared module's gradient.
        gradients: Of the tasks' losses on the shared module, as the rule sees them; None where they were not measured.
        unique_N: Indices of the texts in the token store.
        written_tokens: Tokens of the step's prompts and answers.
    """

    losses: dict[str, float]
    chances: dict[str, float]
    scaled_losses: dict[str, float]
    factors: dict[str, float]
    gradients: TaskGradients | None
    unique_N: np.ndarray
    written_tokens: int = 0


def accumulate_gradients(
    model: MultiTaskModel, sources: Sources, batch: Batch, rule: Rule, seed: int, *, measure: bool = False
) -> StepResult:
    """Forward and backward of one step; gradients are left in the parameters.

    The gradient of all losses with respect to the vectors, and to the states that predict the tokens of answers, is
    taken first and then sent through the backbone, so the backbone is differentiated once, whatever the number of
    tasks. Where each task's gradient is wanted, chunks hold what the same tasks use only: a text that one task uses, as
    nearly all are, is still differentiated once.

    Args:
        model: In training mode.
        sources: Give vectors and rows and take their gradients.
        batch: The step's examples by task.
        rule: Makes one gradient of all.
        seed: Of this step's random numbers.
        measure: Take each task's gradient on the shared module, also if the rule does not need it.

    Raises:
        UserError: A loss is not finite.
    """
    apart = (measure or rule.on_gradients) and model.trains_backbone
    forward = Forward(model, sources, batch, seed, apart=apart)
    losses = forward.losses
    _refuse_not_finite(losses)
    gradients = None
    if apart:
        gradients = forward.backward_by_task(rule)
        balanced = balanced_losses(rule, losses, sources.processes)
        factors = _combine(model, rule, gradients, balanced, sources.processes)
    else:
        factors = _weigh(rule, balanced_losses(rule, losses, sources.processes))
        forward.backward(factors, rule)
    return StepResult(
        losses={name: loss.value.item() for name, loss in losses.items()},
        chances={name: loss.chance for name, loss in losses.items()},
        scaled_losses={name: loss.scaled.item() for name, loss in losses.items()},
        factors=factors,
        gradients=gradients,
        unique_N=forward.texts.unique_N,
        written_tokens=forward.tokens(batch),
    )


@torch.no_grad()
def repeat_losses(
    model: MultiTaskModel, sources: Sources, batch: Batch, rule: Rule, seed: int, *, apart: bool
) -> dict[str, TaskLoss]:
    """The losses of a step's examples under the weights of now, with the step's own random numbers.

    Args:
        model: In training mode.
        sources: Give vectors and rows.
        batch: As in the step.
        rule: As in the step.
        seed: As in the step.
        apart: Whether each task's gradient was taken in the step: its chunks were then others.
    """
    apart = (apart or rule.on_gradients) and model.trains_backbone
    return Forward(model, sources, batch, seed, apart=apart, graph=False).losses


def measure_gradients(model: MultiTaskModel, sources: Sources, batch: Batch, rule: Rule, seed: int) -> TaskGradients:
    """Each task's gradient on the shared module for some examples; no parameter's gradient is touched.

    Args:
        model: In training mode; it has a shared module.
        sources: Give vectors and rows and take their gradients.
        batch: Examples by task.
        rule: As in the step: it says which losses are balanced.
        seed: Of the random numbers.
    """
    return Forward(model, sources, batch, seed, apart=True).backward_by_task(rule, into_heads=False)


def balanced_losses(rule: Rule, losses: Mapping[str, TaskLoss], processes: Processes | None) -> dict[str, float]:
    """The losses as the rule sees them, the mean over all processes: they differ in the last digits where devices do,
    and a rule's state may not."""
    values_K = torch.stack([rule.seen(loss).detach() for loss in losses.values()]).double()
    if processes is not None and processes.count > 1:
        values_K = processes.sum(values_K) / processes.count
    return dict(zip(losses, values_K.tolist(), strict=True))


def _weigh(rule: Rule, losses: Mapping[str, float]) -> dict[str, float]:
    """A rule on gradients has nothing to do where no gradient reaches a shared module."""
    return equal(losses) if rule.on_gradients else rule.weigh(losses)


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
        for p in model.head(name).parameters() if name in model.heads else ():
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
