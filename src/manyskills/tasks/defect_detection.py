"""Is this function vulnerable? (Devign, Zhou et al. 2019)."""

from manyskills.tasks.base import Kind, Task

TASK = Task(
    name="defect_detection",
    kind=Kind.CLASSIFY,
    inputs=("code",),
    label="label",
    primary_metric="accuracy",
    description="a function with a defect",
    question="Does this function have a defect that lets it crash or be attacked? Answer yes or no.\n\n{code}",
)
