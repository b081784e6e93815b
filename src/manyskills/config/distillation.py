"""Learning from single-task runs besides the labels, as configuration."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveFloat

from manyskills.config.section import Section


class DistillationConfig(Section):
    """Tasks with a teacher have the loss (1 - w) L + w KD (Clark et al. 2019, arXiv 1907.04829: "BAM!")."""

    teachers: dict[str, str] = Field(
        min_length=1, description="Task name -> run folder (or a folder such as its best/) that answers it."
    )
    weight: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.5, description="w: what the teachers count, at the first step if it is annealed. The paper: 1."
    )
    anneal: bool = Field(
        default=True, description="w falls in a straight line to 0 at the end: from the teachers to the labels."
    )
    temperature: PositiveFloat = Field(
        default=1.0, description="Divides the logits of teacher and student; large evens the answers out."
    )
