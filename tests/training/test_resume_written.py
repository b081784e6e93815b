"""Runs with heads and written answers continue to the same final weights, whenever they were killed."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from manyskills.saved import read_tasks_file
from manyskills.training import loop, validation
from manyskills.training import run as run_module
from tests.training.helpers import small_config
from tests.training.killing import Killed, assert_same, kill_at, leave_everything_behind, renames

TASKS = {
    "flaky_tests": {},
    "code_translation": {"max_new_tokens": 10},
    "code_summarization": {"max_new_tokens": 8, "select_by": "likelihood", "variants": ["python"]},
    "defect_detection": {"answer": "text", "prompt": "Bad? {code}"},
}
CHANGES = {
    "tasks": TASKS,
    "max_length": 64,
    "max_steps": 6,
    "eval_steps": 2,
    "save_steps": 3,
    "method": {"name": "lora", "r": 2, "lora_dropout": 0.2},
    "learning_rate": 3e-2,
    "seed": 1,
    "early_stopping": {"patience": 1, "keep_task_best": True},
    "baselines": ["untrained"],
    "balancing": {"name": "learned_softmax", "learning_rate": 0.3},
    "step_memory": "cached",
}
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}me: {% endif %}"
)


def _train(config, **options):
    return run_module.train(config, announce=lambda _: None, **options)


@pytest.fixture(scope="module", autouse=True)
def _no_plots():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run_module, "write_plots", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def backbone(backbone_folder, tmp_path_factory):
    """A decoder of its own with a chat template, which may be changed."""
    folder = tmp_path_factory.mktemp("chat") / "qwen2"
    shutil.copytree(backbone_folder("qwen2"), folder)
    _set_template(folder, TEMPLATE)
    return folder


def _set_template(folder, template):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))


@pytest.fixture(scope="module")
def uninterrupted(backbone, seven_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    _train(small_config(str(backbone), seven_dir, folder, **CHANGES))
    return folder


POINTS = {
    "while the first validation generates": lambda m: kill_at(m, validation, "written_outputs", 1),
    "in the fourth step": lambda m: kill_at(m, loop, "accumulate_gradients", 4),
    "between update and log": lambda m: kill_at(m, loop.Trainer, "_log", 3),
    "after a validation": lambda m: kill_at(m, loop.Trainer, "_validate", 3, after=True),
    "between the two renames of last": lambda m: kill_at(m, os, "rename", 3, after=True, when=renames("last")),
    "between the two renames of best": lambda m: kill_at(m, os, "rename", 2, after=True, when=renames("best")),
    "before the results": lambda m: kill_at(m, run_module, "write_card", 1, after=True),
}


@pytest.mark.parametrize("point", POINTS)
def test_killed_once_it_continues_to_the_same_weights(point, backbone, seven_dir, tmp_path, monkeypatch, uninterrupted):
    config = small_config(str(backbone), seven_dir, tmp_path / "run", **CHANGES)
    with monkeypatch.context() as patched:
        POINTS[point](patched)
        leave_everything_behind(patched)
        with pytest.raises(Killed):
            _train(config)
    _train(config, resume=True)
    assert_same(tmp_path / "run", uninterrupted)


def test_best_moved_and_a_task_left(uninterrupted):
    """Else the runs above would say little."""
    training = json.loads((uninterrupted / "results.json").read_text())["training"]
    assert training["stopped"]
    assert training["best_step"] > 0


def test_a_continued_run_keeps_its_prompts_whatever_the_template_says_now(
    backbone, seven_dir, tmp_path, monkeypatch, uninterrupted
):
    config = small_config(str(backbone), seven_dir, tmp_path / "run", **CHANGES)
    with monkeypatch.context() as patched:
        kill_at(patched, loop, "accumulate_gradients", 5)
        with pytest.raises(Killed):
            _train(config)
    kept = read_tasks_file(tmp_path / "run" / "last").prompts
    assert kept["defect_detection"][""].before.startswith("user: ")
    try:
        _set_template(backbone, TEMPLATE.replace("me: ", "it: "))
        _train(config, resume=True)
    finally:
        _set_template(backbone, TEMPLATE)
    assert read_tasks_file(tmp_path / "run" / "best").prompts == kept
    assert_same(tmp_path / "run", uninterrupted)
