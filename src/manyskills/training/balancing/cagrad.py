"""`cagrad`: conflict-averse gradient descent.

Shape legend: K tasks of the step, D dimension of their gradients' span.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import root_scalar

from manyskills.config import CagradConfig
from manyskills.training.balancing.base import Floats, Losses, Rule
from manyskills.training.balancing.min_norm import coordinates, min_norm_weights

_SHORTEST = 1e-4
"""Of a combination's length, in lengths of the longest gradient: shorter ones are taken to be this long."""


class Cagrad(Rule):
    """max over d of min_i g_i . d, with |d - g_0| <= c |g_0|, g_0 the mean gradient (Liu et al. 2021, arXiv 2110.14048,
    algorithm 1).

    The paper's dual is min over w of g_w . g_0 + sqrt(phi) |g_w|, g_w = sum_i w_i g_i, w >= 0, sum w = 1,
    phi = c^2 |g_0|^2, and then d = g_0 + sqrt(phi) g_w / |g_w|. With |g_w| = min over s > 0 of (|g_w|^2 / s + s) / 2, w
    is for given lambda = sqrt(phi) / s the one that makes g_0 + lambda g_w the shortest, and that vector is d where
    |lambda g_w| = sqrt(phi). |lambda g_w| grows with lambda, so lambda is a root in one dimension.
    """

    on_gradients = True

    def __init__(self, tasks: Sequence[str], config: CagradConfig, seed: int) -> None:
        self._c = config.c

    def coefficients(self, gram_KK: Floats, losses: Losses) -> Floats:
        """1 / K + lambda w_i."""
        vectors_DK = coordinates(gram_KK)
        mean_D = vectors_DK.mean(axis=1)
        radius = self._c * float(np.linalg.norm(mean_D))
        equal_K = np.full(len(gram_KK), 1 / len(gram_KK))
        return equal_K + added_weights(vectors_DK, mean_D, radius) if radius > 0 else equal_K


def added_weights(vectors_DK: Floats, mean_D: Floats, radius: float) -> Floats:
    """lambda w with |lambda g_w| = radius and the least |g_0 + lambda g_w|; shape (K,)."""

    def weights(factor: float) -> Floats:
        return min_norm_weights(vectors_DK + mean_D[:, None] / factor)

    def excess(log_factor: float) -> float:
        factor = float(np.exp(log_factor))
        return factor * float(np.linalg.norm(vectors_DK @ weights(factor))) - radius

    # the longest gradient has length 1
    low, high = np.log(radius / 2), np.log(radius / _SHORTEST)
    # where the hull holds zero, the radius may not be reached: d is then inside of the ball
    root = root_scalar(excess, bracket=(low, high), xtol=1e-10).root if excess(high) > 0 else high
    factor = float(np.exp(root))
    return factor * weights(factor)
