"""`dwa`: dynamic weight average."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from manyskills.config import DwaConfig
from manyskills.training.balancing.arithmetic import FLOOR, by_task, positions, softmax, values
from manyskills.training.balancing.base import Losses, Rule, State


class Dwa(Rule):
    """Dynamic weight average (Liu et al. 2019, arXiv 1803.10704, equation 7).

    lambda_k(t) = K exp(w_k(t-1) / T) / sum_i exp(w_i(t-1) / T), w_k(t-1) = L_k(t-1) / L_k(t-2): a task whose loss
    falls slowly weighs more. L_k(t) is the mean over a window of steps; the paper's window is an epoch. The factors are
    lambda_k / K, a softmax over the tasks that the step holds. While a task has fewer than two windows, w_k = 1, as in
    the paper; a window without a task is not one of its windows.
    """

    def __init__(self, tasks: Sequence[str], config: DwaConfig, seed: int) -> None:
        self._tasks, self._config = tuple(tasks), config
        self._steps = 0
        self._sums_A, self._counts_A = np.zeros(len(tasks)), np.zeros(len(tasks))
        self._means_2A = np.full((2, len(tasks)), np.nan)  # of the last window and of the one before it

    def weigh(self, losses: Losses) -> dict[str, float]:
        """The softmax of the rates of the last two full windows."""
        at_K = positions(self._tasks, losses)
        last_K, before_K = np.maximum(self._means_2A[:, at_K], FLOOR)
        rates_K = np.where(np.isnan(before_K), 1.0, last_K / before_K)
        self._sums_A[at_K] += values(losses)
        self._counts_A[at_K] += 1
        self._steps += 1
        if self._steps % self._config.window == 0:
            self._close_window()
        return by_task(losses, softmax(rates_K / self._config.temperature))

    def _close_window(self) -> None:
        held_A = self._counts_A > 0
        self._means_2A[1, held_A] = self._means_2A[0, held_A]
        self._means_2A[0, held_A] = self._sums_A[held_A] / self._counts_A[held_A]
        self._sums_A[:], self._counts_A[:] = 0.0, 0.0

    def state(self) -> State:
        """Means of the last two windows, and the sums of the one that is open."""
        return {
            "steps": np.array(self._steps),
            "sums": self._sums_A.copy(),
            "counts": self._counts_A.copy(),
            "means": self._means_2A.copy(),
        }

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """The inverse of `state`."""
        self._steps = int(state["steps"])
        self._sums_A, self._counts_A = state["sums"].copy(), state["counts"].copy()
        self._means_2A = state["means"].copy()
