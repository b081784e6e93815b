"""How the tasks' losses become one loss. One small class a rule; a rule's state travels with the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from manyskills.config import BalancingConfig, FixedConfig, LearnedSoftmaxConfig, UniformConfig

COLLAPSE = 0.01
"""A task whose weight is below this share is not trained any more, whatever the table's heading says."""


@dataclass(frozen=True, slots=True)
class TaskLoss:
    """A task's loss in one step, and its value at chance level, which makes losses of different kinds comparable."""

    value: torch.Tensor
    chance: float

    @property
    def scaled(self) -> torch.Tensor:
        """1 at chance level."""
        return self.value / self.chance


class Balancing(Protocol):
    """Combines losses. Every process computes the same losses, so there is nothing to average between them."""

    def combine(self, losses: Mapping[str, TaskLoss]) -> torch.Tensor:
        """The loss to differentiate; tasks that are absent from the step are absent here."""
        ...

    def update(self) -> None:
        """Learn from the gradients that the backward pass left, after it and before the next `combine`."""
        ...

    def weights(self) -> dict[str, float]:
        """Effective weights of the last `combine`; they sum to 1."""
        ...

    def state(self) -> dict[str, list[float]]:
        """All that the next step depends on, JSON-ready."""
        ...

    def restore(self, state: Mapping[str, list[float]]) -> None:
        """The inverse of `state`."""
        ...


class WeightedSum:
    """Sum of chance-scaled losses with constant weights; equal ones are `uniform`, given ones `fixed`."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._configured = dict(weights)
        self._last: dict[str, float] = {}

    def combine(self, losses: Mapping[str, TaskLoss]) -> torch.Tensor:
        """Weights are normalised over the tasks that the step holds."""
        total = sum(self._configured[name] for name in losses) or 1.0
        self._last = {name: self._configured[name] / total for name in losses}
        return torch.stack([self._last[name] * loss.scaled for name, loss in losses.items()]).sum()

    def update(self) -> None:
        """Nothing is learnt."""

    def weights(self) -> dict[str, float]:
        """The normalised weights."""
        return dict(self._last)

    def state(self) -> dict[str, list[float]]:
        """None."""
        return {}

    def restore(self, state: Mapping[str, list[float]]) -> None:
        """Nothing to restore."""


class LearnedSoftmax:
    """Softmax of learnt logits over the raw losses: L = sum_i w_i L_i (Akli et al. 2026, arXiv 2603.09978).

    dL/dz_i = w_i (L_i - L): descent raises the weight of every loss below the mean and lowers the others, whatever is
    hard, so the weights collapse onto the task with the least loss. It is here to reproduce that study.
    """

    def __init__(self, tasks: list[str], learning_rate: float, device: torch.device) -> None:
        self._tasks = tasks
        self._logits = torch.zeros(len(tasks), device=device, requires_grad=True)
        self._optimizer = torch.optim.Adam([self._logits], lr=learning_rate)
        self._last: dict[str, float] = {}

    def combine(self, losses: Mapping[str, TaskLoss]) -> torch.Tensor:
        """Softmax over the tasks that the step holds."""
        present = [self._tasks.index(name) for name in losses]
        weights = torch.softmax(self._logits[present], dim=0)
        self._last = dict(zip(losses, weights.detach().tolist(), strict=True))
        return (weights * torch.stack([loss.value for loss in losses.values()])).sum()

    def update(self) -> None:
        """One Adam step on the logits."""
        self._optimizer.step()
        self._optimizer.zero_grad()

    def weights(self) -> dict[str, float]:
        """The softmax."""
        return dict(self._last)

    def state(self) -> dict[str, list[float]]:
        """Logits and Adam's moments."""
        moments = self._optimizer.state.get(self._logits, {})
        state = {"logits": self._logits.detach().tolist()}
        return state | {key: torch.as_tensor(value).reshape(-1).tolist() for key, value in moments.items()}

    def restore(self, state: Mapping[str, list[float]]) -> None:
        """Put logits and moments back."""
        with torch.no_grad():
            self._logits.copy_(torch.tensor(state["logits"]))
        if "step" in state:
            moments = {key: torch.tensor(state[key], device=self._logits.device) for key in ("exp_avg", "exp_avg_sq")}
            self._optimizer.state[self._logits] = {"step": torch.tensor(state["step"][0]), **moments}


def build_balancing(config: BalancingConfig, tasks: list[str], device: torch.device) -> Balancing:
    """The rule of a configuration."""
    match config:
        case UniformConfig():
            return WeightedSum(dict.fromkeys(tasks, 1.0))
        case FixedConfig():
            return WeightedSum(config.weights)
        case LearnedSoftmaxConfig():
            return LearnedSoftmax(tasks, config.learning_rate, device)


def collapsed(weights: Mapping[str, float]) -> list[str]:
    """Tasks whose weight has fallen under 1 %."""
    return [name for name, weight in weights.items() if weight < COLLAPSE]
