"""`uncertainty`: weights from learnt homoscedastic uncertainty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from manyskills.config import UncertaintyConfig
from manyskills.training.balancing.adam import Adam
from manyskills.training.balancing.arithmetic import by_task, positions, values
from manyskills.training.balancing.base import Losses, Rule, State


class Uncertainty(Rule):
    """sum_i exp(-s_i) L_i + s_i / 2 with s_i = log sigma_i^2 (Kendall et al. 2018, arXiv 1705.07115, equation 10).

    This is the paper's form for cross-entropies: L / sigma^2 + log sigma. Its gradient, -exp(-s_i) L_i + 1 / 2, is
    zero where exp(-s_i) = 1 / (2 L_i): the weights go towards the reciprocals of the losses. s starts at 0 and follows
    Adam. The factors are exp(-s_i) / K, so that the rule starts as `uniform`; the paper does not divide by K.
    """

    def __init__(self, tasks: Sequence[str], config: UncertaintyConfig, seed: int) -> None:
        self._tasks = tuple(tasks)
        self._log_variances = Adam(np.zeros(len(tasks)), config.learning_rate)

    def weigh(self, losses: Losses) -> dict[str, float]:
        """exp(-s_i) / K, from before this step's update of s."""
        at_K = positions(self._tasks, losses)
        precisions_K = np.exp(-self._log_variances.values_A[at_K])
        self._log_variances.descend(at_K, 0.5 - precisions_K * values(losses))
        return by_task(losses, precisions_K / len(losses))

    def state(self) -> State:
        """The logarithms of the variances and Adam's moments."""
        return self._log_variances.state()

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Put them back."""
        self._log_variances.restore(state)
