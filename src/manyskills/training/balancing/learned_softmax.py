"""`learned_softmax`: the rule of the study that this package repeats, with its collapse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from manyskills.config import LearnedSoftmaxConfig
from manyskills.training.balancing.adam import Adam
from manyskills.training.balancing.arithmetic import by_task, positions, softmax, values
from manyskills.training.balancing.base import Losses, Rule, State


class LearnedSoftmax(Rule):
    """Softmax of learnt logits, L = sum_i w_i L_i with w = softmax(z) (Akli et al. 2026, arXiv 2603.09978).

    dL/dz_i = w_i (L_i - L): descent raises the weight of every loss below the mean and lowers the others, whatever is
    hard, so the weights collapse onto the task with the least loss. It is here to reproduce that study. The softmax is
    over the tasks that the step holds, and z follows Adam.
    """

    def __init__(self, tasks: Sequence[str], config: LearnedSoftmaxConfig, seed: int) -> None:
        self._tasks = tuple(tasks)
        self._logits = Adam(np.zeros(len(tasks)), config.learning_rate)

    def weigh(self, losses: Losses) -> dict[str, float]:
        """The softmax, from before this step's update of the logits."""
        at_K, losses_K = positions(self._tasks, losses), values(losses)
        weights_K = softmax(self._logits.values_A[at_K])
        self._logits.descend(at_K, weights_K * (losses_K - weights_K @ losses_K))
        return by_task(losses, weights_K)

    def state(self) -> State:
        """Logits and Adam's moments."""
        return self._logits.state()

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Put logits and moments back."""
        self._logits.restore(state)
