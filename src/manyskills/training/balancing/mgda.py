"""`mgda`: multiple-gradient descent."""

from __future__ import annotations

from collections.abc import Sequence

from manyskills.config import MgdaConfig
from manyskills.training.balancing.base import Floats, Losses, Rule
from manyskills.training.balancing.min_norm import coordinates, min_norm_weights


class Mgda(Rule):
    """The shortest vector of the gradients' convex hull: min |sum_i w_i g_i| over w >= 0, sum w = 1 (Desideri 2012;
    Sener & Koltun 2018, arXiv 1810.04650, equation 3).

    It lowers every loss at once, and is zero where no direction does: at a Pareto-stationary point. The shortest
    gradient has most of the weight, and one that is zero stops the module for this step.
    """

    on_gradients = True

    def __init__(self, tasks: Sequence[str], config: MgdaConfig, seed: int) -> None:
        pass

    def coefficients(self, gram_KK: Floats, losses: Losses) -> Floats:
        """w."""
        return min_norm_weights(coordinates(gram_KK))
