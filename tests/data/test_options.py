"""Keys without an effect are named, each once, with the reason."""

from __future__ import annotations

import pytest

from manyskills.config import TrainConfig
from manyskills.data.options import refuse_useless_options
from manyskills.errors import UserError


def refused(**tasks):
    """The keys that are refused."""
    try:
        refuse_useless_options(TrainConfig.model_validate({"tasks": tasks}))
    except UserError as error:
        return [line.partition(": ")[0].removeprefix("tasks.") for line in error.message.splitlines()]
    return []


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("code_translation", {"variants": ["java_csharp"], "prompt": "{source}", "max_new_tokens": 5, "num_beams": 2}),
        ("code_translation", {"loss_on": "all", "select_by": "likelihood", "long": "error"}),
        ("flaky_tests", {"answer": "text", "prompt": "{code}", "loss_on": "all", "max_length": 9}),
        ("flaky_tests", {"head_hidden": 3, "focal_gamma": 1.0, "rename_identifiers": 0.5, "positive_share": 0.5}),
        ("clone_detection", {"read": "joint", "positive_share": 0.5}),
    ],
)
def test_keys_that_have_an_effect(task, options):
    assert refused(**{task: options}) == []


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("code_translation", {"head_hidden": 3, "head_dropout": 0.2, "read": "joint", "rename_identifiers": 0.1}),
        ("code_translation", {"positive_share": 0.5, "positive_weight": 2.0, "focal_gamma": 1.0, "answer": "text"}),
        ("code_search", {"answer": "text"}),
        ("code_search", {"prompt": "{query}", "variants": ["java"], "max_new_tokens": 5, "num_beams": 3}),
        ("flaky_tests", {"select_by": "likelihood", "loss_on": "all"}),
        ("flaky_tests", {"answer": "text", "max_new_tokens": 5, "num_beams": 3, "variants": ["java"]}),
        ("flaky_tests", {"answer": "text", "positive_share": 0.5, "focal_gamma": 1.0, "head_dropout": 0.2}),
        ("clone_detection", {"answer": "text", "read": "joint"}),
    ],
)
def test_keys_that_have_none(task, options):
    wanted = {"answer"} if options.get("answer") == "text" and task.startswith("code_") else set(options)
    wanted -= {"answer"} if task in ("flaky_tests", "clone_detection") else set()
    found = refused(**{task: options})
    assert sorted(found) == sorted(f"{task}.{key}" for key in wanted)


def test_all_tasks_are_told_at_once():
    with pytest.raises(UserError) as error:
        tasks = {"code_search": {"num_beams": 2}, "code_translation": {"head_hidden": 3}}
        refuse_useless_options(TrainConfig.model_validate({"tasks": tasks}))
    assert error.value.message.splitlines() == [
        "tasks.code_search.num_beams: only generating tasks search for a text",
        "tasks.code_translation.head_hidden: the answer is written, there is no head",
    ]
    assert error.value.hint == "leave these keys out"
