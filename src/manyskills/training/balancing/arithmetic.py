"""Small arithmetic that several rules share.

Shape legend: K tasks of the step, in the order of the losses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from manyskills.training.balancing.base import Floats, Losses

FLOOR = 1e-8
"""Losses are not taken to be smaller where they are divided by or their logarithm is taken."""


def positions(tasks: Sequence[str], losses: Mapping[str, object]) -> np.ndarray:
    """Where the step's tasks stand among all tasks, shape (K,)."""
    return np.array([tasks.index(name) for name in losses], dtype=np.int64)


def values(losses: Losses) -> Floats:
    """The losses as an array, shape (K,)."""
    return np.fromiter(losses.values(), dtype=np.float64, count=len(losses))


def by_task(losses: Mapping[str, object], factors_K: Floats) -> dict[str, float]:
    """Factors with the names of their tasks."""
    return dict(zip(losses, factors_K.tolist(), strict=True))


def softmax(logits_K: Floats) -> Floats:
    """exp(z_i) / sum exp(z), without overflow."""
    powers_K = np.exp(logits_K - logits_K.max())
    return powers_K / powers_K.sum()
