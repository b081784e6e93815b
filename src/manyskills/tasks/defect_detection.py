"""Is this function vulnerable? (Devign, Zhou et al. 2019)."""

from manyskills.tasks.base import Kind, Task

TASK = Task(
    name="defect_detection",
    kind=Kind.CLASSIFY,
    inputs=("code",),
    label="label",
    primary_metric="accuracy",
    description="a function with a defect",
)
