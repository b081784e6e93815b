"""How much teachers count in a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from manyskills.config import DistillationConfig
from manyskills.data.text_set import Examples


def annealed(
    batch: Mapping[str, Examples], distillation: DistillationConfig | None, done: float
) -> dict[str, Examples]:
    """A step's examples with the teachers' weight of that step.

    Teacher annealing (Clark et al. 2019, arXiv 1907.04829, section 3): a straight line from the configured weight at
    the first step to 0 at the end, so that a module learns from its teachers first and may surpass them in the end.

    Args:
        batch: The step's examples by task.
        distillation: The run's; None leaves everything as it is.
        done: Share of the run that is done before this step.
    """
    if distillation is None or not distillation.anneal:
        return dict(batch)
    return {name: _weighted(part, distillation.weight * (1 - done)) for name, part in batch.items()}


def _weighted(part: Examples, weight: float) -> Examples:
    return part if part.teaching is None else replace(part, teaching=replace(part.teaching, weight=weight))
