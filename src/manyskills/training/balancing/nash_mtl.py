"""`nash_mtl`: the update as a bargain between the tasks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from manyskills.config import NashMtlConfig
from manyskills.training.balancing.base import Floats, Losses, Rule

_RIDGE = 1e-6
"""The cosines' eigenvalues are not let under this; from float32 gradients they are known to about 1e-7."""
_ITERATIONS, _DECREMENT = 100, 1e-10


class NashMtl(Rule):
    """Nash bargaining solution: sum_i alpha_i g_i with G^T G alpha = 1 / alpha, alpha > 0 (Navon et al. 2022, arXiv
    2202.01017, claim 3.1).

    It maximises sum_i log(g_i . d) over |d| <= 1 up to its length, which is sqrt(K): unlike the mean's it does not
    shrink near a minimum. Clipping and Adam make the length irrelevant. The direction does not depend on the scale of
    any loss. alpha is the minimum of the convex alpha^T M alpha / 2 - sum_i log alpha_i, M = G^T G. Towards a
    Pareto-stationary point alpha grows without bound; a ridge stops it, and the update goes to zero there. A task
    whose gradient is zero has nothing to bargain for: its coefficient is 0.
    """

    on_gradients = True

    def __init__(self, tasks: Sequence[str], config: NashMtlConfig, seed: int) -> None:
        pass

    def coefficients(self, gram_KK: Floats, losses: Losses) -> Floats:
        """alpha."""
        lengths_K = np.sqrt(np.diag(gram_KK))
        moving = lengths_K > 0
        cosines = gram_KK[np.ix_(moving, moving)] / np.outer(lengths_K[moving], lengths_K[moving])
        alpha_K = np.zeros(len(gram_KK))
        alpha_K[moving] = bargain(at_least(cosines, _RIDGE)) / lengths_K[moving]
        return alpha_K


def at_least(matrix_KK: Floats, eigenvalue: float) -> Floats:
    """A symmetric matrix with its smaller eigenvalues raised to this one."""
    values_K, vectors_KK = np.linalg.eigh(matrix_KK)
    return vectors_KK * np.maximum(values_K, eigenvalue) @ vectors_KK.T


def bargain(matrix_KK: Floats) -> Floats:
    """a > 0 with M a = 1 / a, for a positive definite M, shape (K,).

    Damped Newton on a^T M a / 2 - sum log a, which is self-concordant: steps of 1 / (1 + decrement) stay positive and
    converge from anywhere (Nesterov & Nemirovskii 1994).
    """
    a_K = np.ones(len(matrix_KK))
    for _ in range(_ITERATIONS):
        gradient_K = matrix_KK @ a_K - 1 / a_K
        step_K = np.linalg.solve(matrix_KK + np.diag(a_K**-2), gradient_K)
        decrement = float(np.sqrt(max(gradient_K @ step_K, 0.0)))
        a_K = a_K - step_K / (1 + decrement if decrement > 0.25 else 1)
        if decrement < _DECREMENT:
            break
    return a_K
