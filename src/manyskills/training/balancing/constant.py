"""Weights that do not change: `uniform` and `fixed`."""

from __future__ import annotations

from collections.abc import Sequence

from manyskills.config import FixedConfig, UniformConfig
from manyskills.training.balancing.base import Losses, Rule, equal


class Uniform(Rule):
    """The mean of the losses: factor_i = 1 / K over the K tasks that the step holds."""

    def __init__(self, tasks: Sequence[str], config: UniformConfig, seed: int) -> None:
        pass

    def weigh(self, losses: Losses) -> dict[str, float]:
        """1 / K for each."""
        return equal(losses)


class Fixed(Rule):
    """A weighted mean: factor_i = c_i / sum_j c_j over the tasks that the step holds, with c from the configuration."""

    def __init__(self, tasks: Sequence[str], config: FixedConfig, seed: int) -> None:
        self._weights = config.weights

    def weigh(self, losses: Losses) -> dict[str, float]:
        """The weights, normalised; all 0 where the step holds tasks of weight 0 only."""
        total = sum(self._weights[name] for name in losses) or 1.0
        return {name: self._weights[name] / total for name in losses}
