"""Which function does this sentence describe? (CodeSearchNet AdvTest, Husain et al. 2019, Lu et al. 2021)."""

from manyskills.tasks.base import Kind, Task

TASK = Task(
    name="code_search",
    kind=Kind.EMBED,
    inputs=("query", "code"),
    label=None,
    primary_metric="mrr",
    description="the function that a sentence describes",
)
