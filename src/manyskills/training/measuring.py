"""When the tasks' gradients are measured, and what is shown to whoever watches a run.

Shape legend: K tasks, P parameters of the shared module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from manyskills.config import TrainConfig
from manyskills.model.multitask import MultiTaskModel
from manyskills.training.task_gradients import TaskGradients

MEASURED = 2**28
"""Values of all tasks' gradients together (1 GiB) up to which they are measured without being asked for."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A step whose task gradients were measured, before the optimiser's update.

    Attributes:
        step: Counted from 0.
        losses: Each task's loss in it, as it is balanced.
        factors: What each task's gradient counts in the update.
        gradients: Each task's, on the shared module.
        rate: The learning rate of the shared module in it.
        fresh_gradients: Gives the tasks' gradients for the next step's examples, which the weights have not seen.
        fresh_losses: Gives their losses. Both are those under the weights of the time of the call.
    """

    step: int
    losses: dict[str, float]
    factors: dict[str, float]
    gradients: TaskGradients
    rate: float
    fresh_gradients: Callable[[], TaskGradients]
    fresh_losses: Callable[[], dict[str, float]]


Watcher = Callable[[Moment], None]


def conflict_steps(config: TrainConfig, model: MultiTaskModel) -> int:
    """Steps between measurements of the tasks' gradients; 0 is never, as where one task is alone or nothing is shared.

    Unless it is asked for, gradients that would take more than `MEASURED` values are not measured: full fine-tuning of
    a large model would need its memory several times over.
    """
    values = gradient_values(config, model)
    if not values:
        return 0
    if config.conflict_steps is not None:
        return config.conflict_steps
    return config.logging_steps if values <= MEASURED else 0


def gradient_values(config: TrainConfig, model: MultiTaskModel) -> int:
    """Values of all tasks' gradients together; 0 where there is nothing to compare."""
    shared = sum(p.numel() for _, p in model.shared_parameters())
    return shared * len(config.tasks) if len(config.tasks) > 1 else 0
