"""The loop end to end on tiny backbones: what it records, what it chooses, when it ends."""

from __future__ import annotations

import json

import pytest

from manyskills.data.preparation import Truncation
from manyskills.saved import read_tasks_file
from manyskills.training.progress import selection_score
from manyskills.training.run import train
from manyskills.training.schedule import Schedule
from tests.conftest import FAMILIES
from tests.training.helpers import small_config


def _records(run, kind):
    lines = map(json.loads, (run.path / "metrics.jsonl").read_text().splitlines())
    return [record for record in lines if record["kind"] == kind]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_learns(family, backbone_folder, data_dir, tmp_path):
    config = small_config(
        backbone_folder(family), data_dir, tmp_path / "run", max_steps=20, eval_steps=20, baselines=[], batch_size=32
    )
    run = train(config, announce=lambda _: None)
    losses = [sum(record["scaled_loss"].values()) for record in _records(run, "train")]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert run.results["training"]["trainable_shared"] > 0


def test_what_is_recorded(trained_run):
    train_records, valid_records = _records(trained_run, "train"), _records(trained_run, "valid")
    assert [record["step"] for record in train_records] == list(range(1, 13))
    assert [record["step"] for record in valid_records] == [0, 4, 8, 12]
    for record in train_records:
        assert record["weights"] == pytest.approx(dict.fromkeys(record["loss"], 0.25))
        assert 0 <= record["learning_rate"] <= 1e-2
    tokens = [record["tokens"] for record in train_records]
    assert tokens == sorted(tokens)
    assert tokens[-1] == trained_run.results["training"]["tokens"]


def test_best_is_the_validation_with_the_best_selection(trained_run):
    records = _records(trained_run, "valid")
    baseline = records[0]["primary"]
    scores = [selection_score(record["primary"], baseline) for record in records]
    assert [record["selection"] for record in records] == pytest.approx(scores)
    chosen = records[scores.index(max(scores))]
    assert trained_run.results["training"]["best_step"] == chosen["step"]
    assert [record["step"] for record in records if record["best"]][-1] == chosen["step"]
    assert read_tasks_file(trained_run.path / "best").thresholds == chosen["thresholds"]
    for task, entry in trained_run.results["tasks"].items():
        valid = entry["systems"]["module"]["valid"]
        assert valid["metrics"][entry["primary_metric"]]["value"] == pytest.approx(chosen["primary"][task])
        assert entry["systems"]["module"]["test"]["threshold"] == chosen["thresholds"].get(task)


def test_the_same_configuration_gives_the_same_run(trained_run, tmp_path):
    from manyskills.config.file import load_config

    config = load_config(trained_run.path / "config.yaml", [f"output_dir={tmp_path / 'run'}"])
    again = train(config, announce=lambda _: None)
    assert again.results["tasks"] == trained_run.results["tasks"]
    for name in ("adapter_model.safetensors", "heads.safetensors"):
        assert (again.path / "last" / name).read_bytes() == (trained_run.path / "last" / name).read_bytes()


def test_each_step_has_random_numbers_of_its_own(backbone_folder, data_dir, tmp_path, monkeypatch):
    from manyskills.training import loop

    seeds, step = [], loop.accumulate_gradients
    monkeypatch.setattr(
        loop, "accumulate_gradients", lambda *given, **rest: seeds.append(given[-1]) or step(*given, **rest)
    )
    config = small_config(backbone_folder("bert"), data_dir, tmp_path / "one", method="frozen", baselines=[])
    for number in (1, 2):
        train(config.model_copy(update={"seed": number, "output_dir": str(tmp_path / str(number))}))
    assert len(set(seeds)) == len(seeds) == 12


def test_a_collapsed_weight_is_announced_once(backbone_folder, data_dir, tmp_path):
    said = []
    config = small_config(
        backbone_folder("bert"), data_dir, tmp_path / "run", method="frozen", baselines=[], max_steps=30,
        balancing={"name": "learned_softmax", "learning_rate": 1.0},
    )  # fmt: skip
    run = train(config, announce=said.append)
    warnings = [sentence for sentence in said if "has collapsed to 0." in sentence]
    assert 1 <= len(warnings) <= 3
    assert "balancing=uniform" in warnings[0]
    last = _records(run, "train")[-1]
    assert min(last["weights"].values()) < 0.01
    assert max(last["weights"], key=last["weights"].get) == min(last["loss"], key=last["loss"].get)


def test_a_run_ends_when_no_task_improves(backbone_folder, data_dir, tmp_path):
    said = []
    config = small_config(
        backbone_folder("bert"), data_dir, tmp_path / "run", method="frozen", baselines=[], max_steps=400,
        eval_steps=1, learning_rate=1e-9, early_stopping={"patience": 2},
    )  # fmt: skip
    results = train(config, announce=said.append).results["training"]
    assert results["steps"] < 30
    assert set(results["stopped"]) == set(config.tasks)
    assert sum("it is not drawn any more" in sentence for sentence in said) == 4


def test_a_task_that_stopped_is_drawn_no_more_and_its_own_best_is_kept(backbone_folder, data_dir, tmp_path):
    config = small_config(
        backbone_folder("bert"), data_dir, tmp_path / "run", method="frozen", baselines=[], max_steps=40,
        eval_steps=1, early_stopping={"patience": 2, "keep_task_best": True},
    )  # fmt: skip
    run = train(config, announce=lambda _: None)
    state = json.loads((run.path / "last" / "trainer_state.json").read_text())
    records = {record["step"]: record for record in _records(run, "train")}
    for phase, following in zip(state["phases"], [*state["phases"][1:], {"start": 10**9}], strict=True):
        for step in range(phase["start"] + 1, min(following["start"], run.results["training"]["steps"]) + 1):
            assert set(records[step]["loss"]) == set(phase["active"])
    assert len(state["phases"]) > 1
    assert {path.name for path in (run.path / "best_by_task").iterdir()} == set(config.tasks)


def test_fewer_examples_than_tasks_in_a_step(backbone_folder, data_dir, tmp_path):
    config = small_config(
        backbone_folder("bert"), data_dir, tmp_path / "run", method="frozen", baselines=[], batch_size=2, max_steps=4
    )
    run = train(config, announce=lambda _: None)
    assert [len(record["loss"]) for record in _records(run, "train")] == [2] * 4


@pytest.mark.parametrize(
    "sampling", ["proportional", {"name": "temperature", "temperature": 3.0, "cap": 20}, "alternating"]
)
@pytest.mark.parametrize("memory", ["cached", "single_pass"])
def test_other_samplings_and_choices(sampling, memory, backbone_folder, data_dir, tmp_path):
    tasks = {
        "clone_detection": {"head_hidden": 4},
        "flaky_tests": {"positive_share": 0.5, "focal_gamma": 2.0, "limit": 8},
        "defect_detection": {"positive_weight": "balanced"},
        "code_search": {"head_hidden": 8, "limit": {"train": 3}},
    }
    config = small_config(
        backbone_folder("t5"), data_dir, tmp_path / "run", tasks=tasks, sampling=sampling, step_memory=memory,
        baselines=["frozen"], max_steps=3, lr_scheduler_type="cosine",
    )  # fmt: skip
    results = train(config, announce=lambda _: None).results
    assert results["tasks"]["code_search"]["rows"] == {"train": 3, "valid": 10, "test": 10}
    assert results["tasks"]["flaky_tests"]["rows_in_source"]["train"] == 24
    assert set(results["tasks"]["flaky_tests"]["systems"]) == {"module", "frozen"}


@pytest.mark.parametrize(
    ("changes", "rows", "expected"),
    [
        ({"max_steps": 7, "eval_steps": None}, 100, (7, 1, 1)),
        ({"max_steps": None, "num_train_epochs": 3, "batch_size": 16, "eval_steps": None}, 100, (19, 2, 2)),
        ({"max_steps": 100, "eval_steps": 30, "save_steps": 20}, 100, (100, 30, 20)),
        ({"max_steps": None, "num_train_epochs": 0.001, "eval_steps": None}, 10, (1, 1, 1)),
    ],
)
def test_schedule(changes, rows, expected):
    schedule = Schedule.of(small_config("b", "d", **changes), rows)
    assert (schedule.total, schedule.eval_steps, schedule.save_steps) == expected
    assert schedule.validates(schedule.total)
    assert schedule.saves(schedule.total)
    validations = [done for done in range(1, schedule.total + 1) if schedule.validates(done)]
    assert validations[0] == min(schedule.eval_steps, schedule.total)


def test_truncation_as_a_sentence():
    sentence = Truncation(texts=8, cut=2, tokens=200, lost=10, max_length=40).sentence()
    assert sentence == "2 of 8 texts (25.0%) are cut at 40 tokens, losing 5.0% of all tokens"


def test_alternating_steps_are_recorded_and_measured_of_every_task(backbone_folder, data_dir, tmp_path):
    config = small_config(
        backbone_folder("bert"), data_dir, tmp_path / "run", sampling="alternating", max_steps=24, eval_steps=24,
        logging_steps=8, conflict_steps=3, baselines=[],
    )  # fmt: skip
    records = _records(train(config, announce=lambda _: None), "train")
    tasks = set(config.tasks)
    measured = [task for record in records for task in record.get("gradient_norms", {})]
    assert {task: measured.count(task) for task in tasks} == dict.fromkeys(tasks, 3), "turns 1, 3 and 6 of each"
    assert sum(record["steps"] for record in records) == 24
    assert {task for record in records for task in record["loss"]} == tasks
    for record in records:
        assert sum(record["weights"].values()) == pytest.approx(1)
    weights = {task: sum(r["steps"] * r["weights"].get(task, 0) for r in records) / 24 for task in tasks}
    assert weights == pytest.approx(dict.fromkeys(tasks, 0.25))


def test_a_record_holds_the_means_of_its_steps(backbone_folder, data_dir, tmp_path):
    found = []
    for logging_steps in (1, 3):
        config = small_config(
            backbone_folder("bert"), data_dir, tmp_path / str(logging_steps), logging_steps=logging_steps,
            conflict_steps=0, method="frozen", baselines=[], balancing="rlw",
        )  # fmt: skip
        found.append(_records(train(config, announce=lambda _: None), "train"))
    each, means = found
    assert [(record["step"], record["steps"]) for record in means] == [(1, 1), (3, 2), (6, 3)]
    for key in ("loss", "scaled_loss", "weights"):
        for task, value in means[2][key].items():
            assert value == pytest.approx(sum(record[key][task] for record in each[3:]) / 3)


def test_a_rule_that_follows_validation_rows_sees_the_same_ones_each_time(
    backbone_folder, data_dir, tmp_path, monkeypatch
):
    seen = []
    monkeypatch.setattr("manyskills.training.balancing.Coba.validated", lambda self, losses: seen.append(losses))
    config = small_config(
        backbone_folder("bert"), data_dir, tmp_path / "run", learning_rate=1e-12, weight_decay=0, baselines=[],
        balancing={"name": "coba", "every": 2, "rows": 4},
    )  # fmt: skip
    train(config, announce=lambda _: None)
    assert len(seen) == 3
    assert set(seen[0]) == set(config.tasks)
    assert seen[1] == seen[2] == pytest.approx(seen[0])
