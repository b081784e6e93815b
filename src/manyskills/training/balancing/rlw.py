"""`rlw`: random loss weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from manyskills.config import RlwConfig
from manyskills.training.balancing.arithmetic import by_task, positions, softmax
from manyskills.training.balancing.base import Losses, Rule, State

_STREAM = 0x524C57
"""Keeps these numbers apart from others that are drawn by (seed, step)."""


class Rlw(Rule):
    """Random loss weighting: the softmax of standard normal numbers, new in every step (Lin et al. 2022, arXiv
    2111.10603, section 3).

    The numbers are a pure function of the seed and of how many steps the rule has weighed.
    """

    def __init__(self, tasks: Sequence[str], config: RlwConfig, seed: int) -> None:
        self._tasks, self._seed = tuple(tasks), seed
        self._steps = 0

    def weigh(self, losses: Losses) -> dict[str, float]:
        """The softmax over the tasks that the step holds."""
        drawn_A = np.random.default_rng((_STREAM, self._seed, self._steps)).standard_normal(len(self._tasks))
        self._steps += 1
        return by_task(losses, softmax(drawn_A[positions(self._tasks, losses)]))

    def state(self) -> State:
        """The count of steps."""
        return {"steps": np.array(self._steps)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """The inverse of `state`."""
        self._steps = int(state["steps"])
