"""What stands in the table beside the module: each task's own best checkpoint."""

from __future__ import annotations

import json

import pytest

from manyskills.api import load
from manyskills.evaluation.table import notes, render_markdown
from manyskills.training import run as run_module
from manyskills.training.run import train
from tests.training.helpers import TASKS, small_config


@pytest.fixture(scope="module")
def run(backbone_folder, data_dir, tmp_path_factory):
    config = small_config(
        backbone_folder("bert"), data_dir, tmp_path_factory.mktemp("kept") / "run", max_steps=12, eval_steps=2,
        learning_rate=3e-2, baselines=[], early_stopping={"patience": 9, "keep_task_best": True},
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run_module, "write_plots", lambda *_: None)
        return train(config, announce=lambda _: None)


def _primary(entry, system, split):
    return entry["systems"][system][split]["metrics"][entry["primary_metric"]]["value"]


def test_each_task_is_answered_by_its_own_best_step(run):
    records = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    by_step = {record["step"]: record for record in records if record["kind"] == "valid"}
    training = run.results["training"]
    others = [name for name in TASKS if training["task_best_steps"][name] != training["best_step"]]
    assert others, "some task must peak elsewhere for this test to say anything"
    for name, entry in run.results["tasks"].items():
        record = by_step[training["task_best_steps"][name]]
        assert record["primary"][name] == max(found["primary"][name] for found in by_step.values())
        assert _primary(entry, "task_best", "valid") == pytest.approx(record["primary"][name], abs=1e-6)
        assert entry["systems"]["task_best"]["test"]["threshold"] == record["thresholds"].get(name)
        if name not in others:
            assert entry["systems"]["task_best"] == entry["systems"]["module"]


@pytest.mark.parametrize("name", TASKS)
def test_a_task_can_be_served_from_its_own_best(name, run):
    module = load(run.path / "best_by_task" / name, device="cpu")
    entry = run.results["tasks"][name]
    found = module.evaluate(tasks=[name], samples=20)[name].to_dict()["metrics"]
    expected = entry["systems"]["task_best"]["test"]["metrics"]
    assert {key: value["value"] for key, value in found.items()} == pytest.approx(
        {key: value["value"] for key, value in expected.items()}, abs=1e-4
    )


def test_the_table_shows_it_and_takes_it_for_no_baseline(run):
    assert "| module, each task's own best |" in render_markdown(run.results)
    assert not any("own best" in note for note in notes(run.results))


def test_a_run_that_does_not_keep_them_has_no_such_system(trained_run):
    assert all("task_best" not in entry["systems"] for entry in trained_run.results["tasks"].values())
