"""`gls`: the geometric mean of the losses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from manyskills.config import GlsConfig
from manyskills.training.balancing.arithmetic import FLOOR, by_task, values
from manyskills.training.balancing.base import Losses, Rule


class Gls(Rule):
    """Geometric loss strategy, L = (prod_i L_i)^(1/K) (Chennupati et al. 2019, arXiv 1904.08492).

    grad L = sum_i L / (K L_i) grad L_i: relative improvements count alike, whatever the scale of a loss.
    """

    def __init__(self, tasks: Sequence[str], config: GlsConfig, seed: int) -> None:
        pass

    def weigh(self, losses: Losses) -> dict[str, float]:
        """L / (K L_i)."""
        losses_K = np.maximum(values(losses), FLOOR)
        mean = np.exp(np.log(losses_K).mean())
        return by_task(losses, mean / (len(losses) * losses_K))
