"""Does this test pass and fail on the same code? (FlakeFlagger, Alshammari et al. 2021)."""

from manyskills.tasks.base import Kind, Task

TASK = Task(
    name="flaky_tests",
    kind=Kind.CLASSIFY,
    inputs=("code",),
    label="label",
    primary_metric="f1",
    description="a test that passes and fails on the same code",
    question="Is this test flaky: can it both pass and fail on the same code? Answer yes or no.\n\n{code}",
)
