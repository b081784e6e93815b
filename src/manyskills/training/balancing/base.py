"""What a balancing rule is: a small class whose state travels with the checkpoint.

Two kinds. A rule on losses turns the losses of a step into factors: the update follows sum_i factor_i grad L_i. A rule
on gradients sees each task's gradient on the shared module and makes one of them. Losses come as plain numbers, the
mean over all processes, and with `losses: scaled` divided by what each is worth at chance level.

Shape legend: K tasks of the step, P parameters of the shared module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

Losses = Mapping[str, float]
"""By task: a loss of this step. Tasks that the step does not hold are absent."""

State = dict[str, np.ndarray]
"""All that a rule's next step depends on, ready for safetensors."""

Floats = npt.NDArray[np.float64]
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class TaskLoss:
    """A task's loss in one step, and its value at chance level, which makes losses of different kinds comparable."""

    value: torch.Tensor
    chance: float

    @property
    def scaled(self) -> torch.Tensor:
        """1 at chance level."""
        return self.value / self.chance


@dataclass(frozen=True, slots=True)
class Needs:
    """What a rule wants measured besides the step's losses; 0 is never.

    Attributes:
        repeat_every: Steps between measurements of the same examples' losses after the update (`repeated`).
        validation_every: Steps between measurements of losses on validation rows (`validated`).
        validation_rows: How many of each task.
    """

    repeat_every: int = 0
    validation_every: int = 0
    validation_rows: int = 0


@dataclass(frozen=True, slots=True)
class Combined:
    """What a rule on gradients makes of a step.

    Attributes:
        gradient_P: Of the shared module.
        factors: By task, what its gradient counts in it.
        head_factors: By task, what its loss counts for its own head.
    """

    gradient_P: torch.Tensor
    factors: dict[str, float]
    head_factors: dict[str, float]


class Rule:
    """What all rules offer; without state and without needs unless they say so.

    A rule on losses implements `weigh`. A rule on gradients sets `on_gradients` and implements `coefficients`, if what
    it makes of the gradients is a linear combination that depends on their inner products alone, or else `combine`.
    """

    on_gradients = False
    needs = Needs()
    raw_losses = False  # `build_balancing` sets it from `losses: raw`

    def seen(self, loss: TaskLoss) -> torch.Tensor:
        """The loss that is balanced."""
        return loss.value if self.raw_losses else loss.scaled

    def weigh(self, losses: Losses) -> dict[str, float]:
        """Factors of the losses: the step follows sum_i factor_i grad L_i. Called once a step, so a rule that learns
        from the losses does so here, after it has computed the factors."""
        raise NotImplementedError

    def coefficients(self, gram_KK: Floats, losses: Losses) -> Floats:
        """Coefficients of the gradients, shape (K,); called once a step.

        Args:
            gram_KK: Inner products of the tasks' gradients, in the order of `losses`.
            losses: Of this step.
        """
        raise NotImplementedError

    def combine(self, gradients_KP: torch.Tensor, losses: Losses) -> Combined:
        """One gradient of all; heads follow the mean of the losses, because a head belongs to one task alone.

        Args:
            gradients_KP: grad L_i of the shared module, in the order of `losses`.
            losses: Of this step.
        """
        coefficients_K = self.coefficients(gram(gradients_KP), losses)
        weights_K = torch.as_tensor(coefficients_K, dtype=gradients_KP.dtype, device=gradients_KP.device)
        factors = dict(zip(losses, coefficients_K.tolist(), strict=True))
        return Combined(weights_K @ gradients_KP, factors, equal(losses))

    def repeated(self, losses: Losses) -> None:
        """Learn from the losses of the same examples, with the same dropout, after the update."""

    def validated(self, losses: Losses) -> None:
        """Learn from losses on validation rows; called before the step's `weigh` or `combine`."""

    def state(self) -> State:
        """All that the next step depends on."""
        return {}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """The inverse of `state`."""


def gram(gradients_KP: torch.Tensor) -> Floats:
    """Inner products of gradients, shape (K, K)."""
    return (gradients_KP @ gradients_KP.T).double().cpu().numpy()


def equal(losses: Mapping[str, Value]) -> dict[str, float]:
    """1 / K for each task."""
    return dict.fromkeys(losses, 1 / len(losses))


def shares(factors: Mapping[str, float]) -> dict[str, float]:
    """Effective weights: factors normalised to sum to 1 in absolute value."""
    total = sum(abs(factor) for factor in factors.values()) or 1.0
    return {name: factor / total for name, factor in factors.items()}
