"""`gradnorm`: weights that bring the tasks' gradients to comparable lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from manyskills.config import GradnormConfig
from manyskills.training.balancing.adam import Adam
from manyskills.training.balancing.arithmetic import FLOOR, by_task, positions, values
from manyskills.training.balancing.base import Combined, Floats, Losses, Rule, State

_LEAST = 1e-3
"""A weight is not let under this: one at zero would have no gradient to come back by."""


class Gradnorm(Rule):
    """GradNorm (Chen et al. 2018, arXiv 1711.02257, equations 1 and 2 and algorithm 1).

    G_i = w_i |g_i|, measured on the whole shared module; the target is mean(G) r_i^alpha, with
    r_i = (L_i / L_i(0)) / mean_j(L_j / L_j(0)): a task that has learnt little so far gets longer gradients. w follows
    Adam on sum_i |G_i - target_i|, the targets held constant, and is then rescaled to sum to the number of tasks. w
    starts at 1. L_i(0) of scaled losses is 1, their value at chance level: the paper's theoretical initial loss, which
    no single batch disturbs. With raw losses it is the first one seen. The factors, for the module and the heads, are
    w_i / sum_j w_j over the tasks that the step holds.
    """

    on_gradients = True

    def __init__(self, tasks: Sequence[str], config: GradnormConfig, seed: int) -> None:
        self._tasks, self._alpha = tuple(tasks), config.alpha
        self._weights = Adam(np.ones(len(tasks)), config.learning_rate)
        self._first_A = np.full(len(tasks), np.nan)

    def combine(self, gradients_KP: torch.Tensor, losses: Losses) -> Combined:
        """w_i / sum_j w_j, from before this step's update of w."""
        at_K = positions(self._tasks, losses)
        weights_K = self._weights.values_A[at_K]
        factors_K = weights_K / weights_K.sum()
        self._learn(at_K, torch.linalg.vector_norm(gradients_KP, dim=1).double().cpu().numpy(), values(losses))
        combined_P = torch.as_tensor(factors_K, dtype=gradients_KP.dtype, device=gradients_KP.device) @ gradients_KP
        factors = by_task(losses, factors_K)
        return Combined(combined_P, factors, factors)

    def _learn(self, at_K: np.ndarray, lengths_K: Floats, losses_K: Floats) -> None:
        seen_K = losses_K if self.raw_losses else np.ones(len(losses_K))
        self._first_A[at_K] = np.where(np.isnan(self._first_A[at_K]), seen_K, self._first_A[at_K])
        left_K = np.maximum(losses_K, FLOOR) / np.maximum(self._first_A[at_K], FLOOR)
        norms_K = self._weights.values_A[at_K] * lengths_K
        target_K = norms_K.mean() * (left_K / left_K.mean()) ** self._alpha
        self._weights.descend(at_K, np.sign(norms_K - target_K) * lengths_K)
        weights_A = np.maximum(self._weights.values_A, _LEAST)
        self._weights.values_A = weights_A * (len(self._tasks) / weights_A.sum())

    def state(self) -> State:
        """Weights, Adam's moments and L(0)."""
        return self._weights.state() | {"first_losses": self._first_A.copy()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """The inverse of `state`."""
        self._weights.restore(state)
        self._first_A = state["first_losses"].copy()
