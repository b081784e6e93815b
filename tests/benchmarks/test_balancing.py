"""The benchmarks of balancing: one runs from end to end, the other's arithmetic is right."""

from __future__ import annotations

import json

import pytest

import balancing_cost
import balancing_table
from balancing_table import Trained, gains, table
from manyskills.config import TrainConfig
from manyskills.config.file import load_config


def test_every_rule_is_timed_against_uniform(backbone_folder, data_dir, tmp_path):
    balancing_cost.main(["--quick", "--rounds", "1", "--threads", "1", "--data", str(data_dir),
                         "--backbone", backbone_folder("bert"), "--output", str(tmp_path)])  # fmt: skip
    found = json.loads((tmp_path / "balancing_cost.json").read_text())
    ratios = found["times_a_uniform_step"]
    assert len(ratios) == 15  # fourteen rules, and uniform with its gradients measured
    assert ratios["uniform"]["cpu"] == 1
    assert set(found["every"]) == {"famo", "coba"}
    assert set(found["on_gradients"]) == {"pcgrad", "cagrad", "mgda", "nash_mtl", "db_mtl", "gradnorm"}
    assert all(ratio["cpu"] > 0 for ratio in ratios.values())


def test_a_measurement_counts_by_how_seldom_it_is():
    cost = balancing_cost.Cost
    costs = {"uniform": [cost(2.0, 9.0)], "famo": [cost(2.0, 9.0)], "famo" + balancing_cost.WITH: [cost(3.0, 9.0)]}
    assert balancing_cost._ratio(costs, "famo", 10) == {"cpu": pytest.approx(1.05), "range": [pytest.approx(1.05)] * 2}
    assert balancing_cost._ratio(costs, "famo", None)["cpu"] == 1


def trained(primary, last, losses):
    tasks = list(balancing_table.HEADS)
    return Trained(*(dict(zip(tasks, values, strict=True)) for values in (primary, last, losses)))


def test_gains_are_means_over_tasks_of_relative_differences():
    alone = {task: trained([0.5] * 4, [0.4] * 4, [1.0] * 4) for task in balancing_table.HEADS}
    together = trained([0.5, 0.6, 0.5, 0.5], [0.4, 0.4, 0.2, 0.4], [0.9, 1.0, 1.0, 1.0])
    found = gains(together, alone)
    assert found.chosen == pytest.approx(0.05)
    assert found.last == pytest.approx(-0.125)
    assert found.loss == pytest.approx(0.025)
    lines = table({"uniform": {0: together}}, {0: alone})
    assert lines[3].startswith("| uniform | 1 | 0.400 | 0.400 | 0.200 | 0.400 | 5.0 | -12.5 | 2.5 |")


@pytest.mark.parametrize("name", [*balancing_table.RULES, *balancing_table.REMEDIES])
def test_every_recipe_is_a_configuration(name):
    base = load_config(balancing_table.RECIPE)
    config = TrainConfig.model_validate(balancing_table.together(base, name))
    alone = TrainConfig.model_validate(balancing_table.single(base, "flaky_tests"))
    assert config.batch_size * (config.max_steps or 0) == base.batch_size * (base.max_steps or 0)
    assert alone.batch_size * 4 == base.batch_size
    assert list(alone.tasks) == ["flaky_tests"]
