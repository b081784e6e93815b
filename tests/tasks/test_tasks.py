"""What the table of tasks promises to everything that reads it."""

from __future__ import annotations

import pytest

from manyskills.config import TaskConfig
from manyskills.data.frames import written
from manyskills.errors import UserError
from manyskills.tasks import Kind, all_tasks, get_task


@pytest.mark.parametrize("task", all_tasks().values(), ids=all_tasks())
def test_columns_variants_and_questions_agree(task):
    assert (task.kind is Kind.GENERATE) == bool(task.variants) == written(task.name, TaskConfig())
    assert bool(task.label) == bool(task.question)
    assert task.join is None or len(task.join.references) == len(task.inputs)
    names = [variant.name for variant in task.variants]
    assert len(set(names)) == len(names)
    for variant in task.variants:
        assert {variant.source, variant.target} == set(task.inputs)
        assert variant.prompt.count("{source}") == 1
        assert not variant.prompt.replace("{source}", "").count("{")
    if task.by_language:
        assert all(name in ("python", "java") for name in names), "a row's language is the name of its variant"


def test_seven_tasks_and_their_metrics():
    kinds = {name: task.kind for name, task in all_tasks().items()}
    assert list(kinds.values()).count(Kind.GENERATE) == 3
    assert {"code_generation", "code_summarization", "code_translation"} < set(kinds)
    with pytest.raises(UserError, match="unknown task 'code_translaton'"):
        get_task("code_translaton")
