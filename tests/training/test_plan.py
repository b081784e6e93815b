"""A plan is right about what it says without training anything."""

from __future__ import annotations

import pytest

from manyskills.model.methods import METHODS
from manyskills.training.plan import make_plan
from manyskills.training.plan_text import plan_text
from manyskills.training.run import load_inputs, train
from tests.conftest import FAMILIES
from tests.training.helpers import CPU, small_config


@pytest.mark.parametrize("family", FAMILIES)
def test_plan_counts_what_trains(family, backbone_folder, data_dir):
    config = small_config(backbone_folder(family), data_dir)
    plan = make_plan(config)
    model, prepared = load_inputs(config, CPU)
    assert plan.method.trainable == sum(p.numel() for _, p in model.shared_parameters()) > 0
    assert plan.trainable_heads == sum(p.numel() for _, p in model.head_parameters())
    assert plan.steps == 6
    assert plan.tasks["defect_detection"].truncation == prepared.truncation["defect_detection"]
    assert plan.memory["cached"].activations < plan.memory["single_pass"].activations


def test_planned_tokens_are_the_tokens_of_the_run(backbone_folder, data_dir, tmp_path):
    config = small_config(backbone_folder("bert"), data_dir, tmp_path / "run")
    plan = make_plan(config)
    assert not (tmp_path / "run").exists(), "a plan writes nothing"
    assert plan.tokens == train(config).results["training"]["tokens"]


def test_frozen_run_needs_no_activations(backbone_folder, data_dir):
    plan = make_plan(small_config(backbone_folder("bert"), data_dir, method="frozen"))
    assert plan.method.trainable == 0
    assert plan.memory["single_pass"].activations == 0


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ({}, 4), ({"conflict_steps": 0}, 0), ({"conflict_steps": 0, "balancing": "cagrad"}, 4),
        ({"balancing": "db_mtl"}, 8), ({"tasks": ["code_search"]}, 0), ({"method": "frozen"}, 0),
    ],
)  # fmt: skip
def test_each_tasks_gradient_takes_memory(changes, rows, backbone_folder, data_dir):
    plan = make_plan(small_config(backbone_folder("bert"), data_dir, **changes))
    for memory in plan.memory.values():
        assert memory.task_gradients == 4 * rows * plan.method.trainable
        assert memory.total == memory.weights + memory.training + memory.activations + memory.task_gradients
    assert ("the tasks' gradients" in plan_text(plan)) == bool(rows)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_every_method_can_be_planned(method, family, backbone_folder, data_dir):
    plan = make_plan(small_config(backbone_folder(family), data_dir, method=method))
    assert plan.method.name == method
    assert (plan.memory["single_pass"].activations > 0) == (method != "frozen")
