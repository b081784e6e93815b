"""How much teachers count in a step."""

from __future__ import annotations

from dataclasses import replace

from manyskills.config import DistillationConfig
from manyskills.data.prompted import PromptExamples
from manyskills.data.text_set import Examples
from manyskills.training.forward import Batch


def annealed(batch: Batch, distillation: DistillationConfig | None, done: float) -> Batch:
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


def _weighted(part: Examples | PromptExamples, weight: float) -> Examples | PromptExamples:
    if isinstance(part, PromptExamples) or part.teaching is None:
        return part
    return replace(part, teaching=replace(part.teaching, weight=weight))
