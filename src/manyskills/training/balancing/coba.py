"""`coba`: weights from the slopes of validation losses.

Shape legend: A all tasks, K those of the step, H measurements that a slope is fitted to, S slopes of each task so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from manyskills.config import CobaConfig
from manyskills.training.balancing.arithmetic import FLOOR, by_task, positions, softmax
from manyskills.training.balancing.base import Floats, Losses, Needs, Rule, State


class Coba(Rule):
    """Convergence balancer (Gong et al. 2024, arXiv 2410.06741, section 3 and algorithm 1).

    alpha_i(t) is the slope of a line fitted by least squares to the last N validation losses of task i, each divided by
    its first one. Of the K tasks of a step:

    * relative convergence RCS_i = softmax_i(K alpha_i(t) / sum_j |alpha_j(t)|): a task that falls slowly weighs more;
    * absolute convergence ACS_i = softmax_i(-N alpha_i(t) / sum over the last N slopes of |alpha_i(s)|): a task that
      rises, compared with its own past, weighs less;
    * divergence DF = min(t softmax_s(-tau t alpha_max(s) / sum_s |alpha_max(s)|)(t), 1) over all slopes s <= t so far:
      near 0 as soon as a task rises that had been falling;
    * factor_i = DF RCS_i + (1 - DF) ACS_i, and 1 / K during warm-up.

    alpha_max(t) = max_i alpha_i(t) is the slope of the task that converges slowest. The authors' code fits a line to
    the maximum over tasks of the ratios instead, sends the factors through another softmax and keeps them above a
    minimum; that is not done here. Slopes that are all 0 give equal scores. Where a task is missing from a
    measurement (it has stopped), its last ratio is kept.
    """

    def __init__(self, tasks: Sequence[str], config: CobaConfig, seed: int) -> None:
        self._tasks, self._config = tuple(tasks), config
        self._measured = 0
        self._first_A = np.full(len(tasks), np.nan)
        self._ratios_HA = np.empty((0, len(tasks)))
        self._slopes_SA = np.empty((0, len(tasks)))  # the last N
        self._steepest_S = np.empty(0)  # alpha_max of all measurements
        self.needs = Needs(validation_every=config.every, validation_rows=config.rows)

    def validated(self, losses: Losses) -> None:
        """One more measurement; after warm-up also one more slope."""
        at_K = positions(self._tasks, losses)
        measured_A = np.full(len(self._tasks), np.nan)
        measured_A[at_K] = list(losses.values())
        self._first_A = np.where(np.isnan(self._first_A), measured_A, self._first_A)
        before_A = self._ratios_HA[-1] if len(self._ratios_HA) else np.ones(len(self._tasks))
        ratios_A = measured_A / np.maximum(self._first_A, FLOOR)
        ratios_A = np.where(np.isnan(ratios_A), before_A, ratios_A)
        self._ratios_HA = np.vstack([self._ratios_HA, ratios_A])[-self._config.history :]
        self._measured += 1
        if self._measured >= self._config.warmup:
            slopes_A = fitted_slopes(self._ratios_HA)
            self._slopes_SA = np.vstack([self._slopes_SA, slopes_A])[-self._config.history :]
            self._steepest_S = np.append(self._steepest_S, slopes_A[at_K].max())

    def weigh(self, losses: Losses) -> dict[str, float]:
        """DF RCS + (1 - DF) ACS, from the last measurement."""
        if not len(self._slopes_SA):
            return by_task(losses, np.full(len(losses), 1 / len(losses)))
        slopes_SK = self._slopes_SA[:, positions(self._tasks, losses)]
        relative_K = softmax(len(losses) * over_sum(slopes_SK[-1]))
        absolute_K = softmax(-len(slopes_SK) * over_sum(slopes_SK)[-1])
        divergence = self._divergence_factor()
        return by_task(losses, divergence * relative_K + (1 - divergence) * absolute_K)

    def _divergence_factor(self) -> float:
        count = len(self._steepest_S)
        chances_S = softmax(-self._config.tau * count * over_sum(self._steepest_S))
        return min(count * float(chances_S[-1]), 1.0)

    def state(self) -> State:
        """First losses, ratios and slopes."""
        return {
            "measured": np.array(self._measured),
            "first": self._first_A.copy(),
            "ratios": self._ratios_HA.copy(),
            "slopes": self._slopes_SA.copy(),
            "steepest": self._steepest_S.copy(),
        }

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """The inverse of `state`."""
        self._measured = int(state["measured"])
        self._first_A, self._ratios_HA = state["first"].copy(), state["ratios"].copy()
        self._slopes_SA, self._steepest_S = state["slopes"].copy(), state["steepest"].copy()


def fitted_slopes(ratios_HA: Floats) -> Floats:
    """Least-squares slope of each column over equidistant measurements; shape (A,)."""
    times_H = np.arange(len(ratios_HA)) - (len(ratios_HA) - 1) / 2
    return times_H @ ratios_HA / (times_H @ times_H)


def over_sum(slopes: Floats) -> Floats:
    """Divided by the sum of the absolute values over the first axis; 0 where all are 0."""
    total = np.abs(slopes).sum(axis=0)
    return slopes / np.where(total > 0, total, 1.0)
