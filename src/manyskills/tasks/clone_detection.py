"""Do two functions do the same thing? (BigCloneBench, Svajlenko et al. 2014; splits of CodeXGLUE)."""

from manyskills.tasks.base import Join, Kind, Task

TASK = Task(
    name="clone_detection",
    kind=Kind.PAIR,
    inputs=("code1", "code2"),
    label="label",
    primary_metric="f1",
    description="two functions that do the same thing",
    file_stem="pairs_",
    join=Join(table="functions", key="id", value="code", references=("id1", "id2")),
    symmetric=True,
    question="Do these two functions do the same thing? Answer yes or no.\n\n"
    "First function:\n{code1}\n\nSecond function:\n{code2}",
)
