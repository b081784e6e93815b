"""`famo`: fast adaptive multi-task optimisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from manyskills.config import FamoConfig
from manyskills.training.balancing.adam import Adam
from manyskills.training.balancing.arithmetic import FLOOR, by_task, positions, softmax, values
from manyskills.training.balancing.base import Losses, Needs, Rule, State


class Famo(Rule):
    """Fast adaptive multi-task optimisation: every task is to make the same relative progress (Liu et al. 2023, arXiv
    2306.03792, algorithm 1).

    With z = softmax(xi) the step follows c sum_i z_i grad log L_i, c = 1 / sum_i z_i / L_i; so the factors are
    c z_i / L_i and sum to 1. Afterwards xi goes against J^T delta + gamma xi, where delta_i = log L_i - log L'_i is
    what the step did to the losses L' of the same examples and J = diag(z) - z z^T is the Jacobian of the softmax: a
    task that fell less than the others (in the mean by z) gets more weight. Algorithm 1 writes plain descent for xi.
    The authors' published code takes Adam, with gamma xi as a part of its gradient, and so does this class: one step
    changes log L by so little that plain descent at the same rate does not leave z = 1 / K within a run. The paper
    updates xi in every step, here it happens every `every` steps.
    """

    def __init__(self, tasks: Sequence[str], config: FamoConfig, seed: int) -> None:
        self._tasks, self._config = tuple(tasks), config
        self._logits = Adam(np.zeros(len(tasks)), config.learning_rate)
        self._weighed: Losses = {}
        self.needs = Needs(repeat_every=config.every)

    def weigh(self, losses: Losses) -> dict[str, float]:
        """c z_i / L_i over the tasks that the step holds."""
        self._weighed = dict(losses)
        parts_K = softmax(self._logits.values_A[positions(self._tasks, losses)]) / np.maximum(values(losses), FLOOR)
        return by_task(losses, parts_K / parts_K.sum())

    def repeated(self, losses: Losses) -> None:
        """One step of xi, for the tasks of the last `weigh`."""
        at_K = positions(self._tasks, losses)
        before_K = np.array([self._weighed[name] for name in losses])
        fall_K = np.log(np.maximum(before_K, FLOOR)) - np.log(np.maximum(values(losses), FLOOR))
        logits_K = self._logits.values_A[at_K]
        shares_K = softmax(logits_K)
        slopes_K = shares_K * (fall_K - shares_K @ fall_K)
        self._logits.descend(at_K, slopes_K + self._config.weight_decay * logits_K)

    def state(self) -> State:
        """xi and Adam's moments. The losses of the last `weigh` are not part of it: `repeated` belongs to that step."""
        return self._logits.state()

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """The inverse of `state`."""
        self._logits.restore(state)
