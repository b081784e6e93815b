"""`pcgrad`: projecting conflicting gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from manyskills.config import PcgradConfig
from manyskills.training.balancing.arithmetic import positions
from manyskills.training.balancing.base import Floats, Losses, Rule, State

_STREAM = 0x504347
"""Keeps these numbers apart from others that are drawn by (seed, step)."""


class Pcgrad(Rule):
    """Gradient surgery (Yu et al. 2020, arXiv 2001.06782, algorithm 1).

    Each gradient, going through the others in random order, loses its component along every one that it conflicts
    with: g_i <- g_i - (g_i . g_j) / |g_j|^2 g_j where g_i . g_j < 0, with the projected g_i so far and the original
    g_j. The update is the mean of the results (the paper: their sum), so that without conflict it is `uniform`'s.
    The order is a pure function of the seed and of how many steps the rule has combined.
    """

    on_gradients = True

    def __init__(self, tasks: Sequence[str], config: PcgradConfig, seed: int) -> None:
        self._tasks, self._seed = tuple(tasks), seed
        self._steps = 0

    def coefficients(self, gram_KK: Floats, losses: Losses) -> Floats:
        """Column means of the coefficients of all projected gradients."""
        drawn_A = np.random.default_rng((_STREAM, self._seed, self._steps)).random((len(self._tasks),) * 2)
        self._steps += 1
        at_K = positions(self._tasks, losses)
        projected = [project(task, np.argsort(drawn_A[at_K[task], at_K]), gram_KK) for task in range(len(losses))]
        return np.mean(projected, axis=0)

    def state(self) -> State:
        """The count of steps."""
        return {"steps": np.array(self._steps)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """The inverse of `state`."""
        self._steps = int(state["steps"])


def project(task: int, order_K: np.ndarray, gram_KK: Floats) -> Floats:
    """Coefficients of a task's gradient after its conflicts have been projected away in this order; shape (K,)."""
    coefficients_K = np.eye(len(gram_KK))[task]
    for other in order_K:
        product = float(gram_KK[other] @ coefficients_K)
        if other != task and product < 0 and gram_KK[other, other] > 0:
            coefficients_K[other] -= product / gram_KK[other, other]
    return coefficients_K
