"""Adam on a handful of numbers, one for each task (Kingma & Ba 2015, arXiv 1412.6980, algorithm 1).

Shape legend: A all tasks, K those of the step.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from manyskills.training.balancing.base import Floats, State

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


class Adam:
    """Values and moments of all tasks. Each task counts its own steps: one that is absent from a step stays as it is.

    Args:
        values_A: Where the values start.
        learning_rate: Step size.
    """

    def __init__(self, values_A: Floats, learning_rate: float) -> None:
        self.values_A, self.learning_rate = values_A.copy(), learning_rate
        self._first_A, self._second_A = np.zeros_like(self.values_A), np.zeros_like(self.values_A)
        self._steps_A = np.zeros(len(self.values_A), dtype=np.int64)

    def descend(self, at_K: np.ndarray, gradient_K: Floats) -> None:
        """One step against the gradient for the tasks at these positions."""
        self._steps_A[at_K] += 1
        self._first_A[at_K] += (1 - _BETA1) * (gradient_K - self._first_A[at_K])
        self._second_A[at_K] += (1 - _BETA2) * (gradient_K**2 - self._second_A[at_K])
        first_K = self._first_A[at_K] / (1 - _BETA1 ** self._steps_A[at_K])
        second_K = self._second_A[at_K] / (1 - _BETA2 ** self._steps_A[at_K])
        self.values_A[at_K] -= self.learning_rate * first_K / (np.sqrt(second_K) + _EPSILON)

    def state(self) -> State:
        """Values, moments and counts."""
        return {
            "values": self.values_A.copy(),
            "first_moments": self._first_A.copy(),
            "second_moments": self._second_A.copy(),
            "steps": self._steps_A.copy(),
        }

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """The inverse of `state`."""
        self.values_A, self._steps_A = state["values"].copy(), state["steps"].copy()
        self._first_A, self._second_A = state["first_moments"].copy(), state["second_moments"].copy()
