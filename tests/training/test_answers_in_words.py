"""Yes/no tasks answered in words have all that heads have, and are compared with heads row by row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from manyskills.api import load
from manyskills.config.file import load_config
from manyskills.data.options import refuse_useless_options
from manyskills.evaluation.paired import compare, paired_replicates
from manyskills.studies.runs import read_answers, read_run, refuse_other_data
from manyskills.training.run import train

EXAMPLE = Path(__file__).parents[2] / "examples" / "answers_in_words.yaml"
HEADS = ["tasks.defect_detection.answer=head", "tasks.flaky_tests.answer=head"]
SHORT = ["tasks.defect_detection.prompt='Bad? {code}'", "tasks.flaky_tests.prompt='Flaky? {code}'"]


@pytest.fixture(scope="module")
def runs(backbone_folder, seven_dir, tmp_path_factory):
    """The example's two runs on a tiny decoder, whose byte tokenizer wants short questions."""
    folder = tmp_path_factory.mktemp("runs")
    common = [
        f"backbone={backbone_folder('qwen2')}", f"data_dir={seven_dir}", "max_length=68", "max_steps=4", "eval_steps=2",
        "learning_rate=1e-2", "logging_steps=1", "bootstrap_samples=20", "early_stopping=null",
    ]  # fmt: skip
    return {
        name: train(load_config(EXAMPLE, [*common, *changes, f"output_dir={folder / name}"]), announce=lambda _: None)
        for name, changes in {"words": SHORT, "heads": HEADS}.items()
    }


def test_words_and_heads_differ_in_the_answer_alone():
    words, heads = load_config(EXAMPLE), load_config(EXAMPLE, HEADS)
    refuse_useless_options(heads)
    assert {task.answer for task in words.tasks.values()} == {"text"}
    assert heads == words.model_copy(
        update={"tasks": {name: task.model_copy(update={"answer": "head"}) for name, task in words.tasks.items()}}
    )


@pytest.mark.parametrize("task", ["defect_detection", "flaky_tests"])
def test_words_are_measured_as_heads_are(task, runs):
    words, heads = (runs[name].results["tasks"][task] for name in ("words", "heads"))
    assert set(words["systems"]) == set(heads["systems"]) == {"module", "floor", "untrained"}
    for system in ("module", "untrained"):
        for split in ("valid", "test"):
            found, wanted = (one["systems"][system][split] for one in (words, heads))
            assert found["metrics"].keys() == wanted["metrics"].keys()
            assert found.keys() == wanted.keys()
    assert words["systems"]["floor"] == heads["systems"]["floor"]
    assert words["primary_metric"] == heads["primary_metric"]


def test_thresholds_are_chosen_on_validation_and_decide(runs):
    folder = runs["words"].path
    thresholds = json.loads((folder / "best" / "tasks.json").read_text())["thresholds"]
    assert set(thresholds) == {"defect_detection", "flaky_tests"}
    for task, threshold in thresholds.items():
        lines = [json.loads(line) for line in (folder / "predictions" / f"{task}.jsonl").read_text().splitlines()]
        assert [line["prediction"] for line in lines] == [int(line["probability"] >= threshold) for line in lines]
        assert len({line["probability"] for line in lines}) > 1
        assert all(0 < line["probability"] < 1 for line in lines)


def test_a_loaded_module_gives_the_predictions_of_the_run(runs, seven_dir):
    folder = runs["words"].path
    lines = [json.loads(line) for line in (folder / "predictions" / "flaky_tests.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in (seven_dir / "flaky_tests" / "test.jsonl").read_text().splitlines()]
    model = load(folder)
    by_id = {row["id"]: row for row in rows}
    asked = [{"code": by_id[line["id"]]["code"]} for line in lines]
    assert model.predict_proba("flaky_tests", asked) == pytest.approx([line["probability"] for line in lines], abs=1e-5)
    assert model.predict("flaky_tests", asked) == [line["prediction"] for line in lines]


@pytest.mark.parametrize("task", ["defect_detection", "flaky_tests"])
def test_they_are_compared_row_by_row(task, runs):
    """As docs/generation.md shows it."""
    words, heads = (read_run(runs[name].path) for name in ("words", "heads"))
    refuse_other_data([words, heads], task)
    reference = read_answers(heads, task)
    first_SNF = read_answers(words, task).in_order_of(reference)[None]
    second_SNF = reference.parts_NF[None]
    replicates_2R = paired_replicates(first_SNF, second_SNF, words.metric(task), samples=200, seed=0)
    found = compare(first_SNF, second_SNF, words.metric(task), replicates_2R, confidence=0.95, permutations=100, seed=0)
    assert found.rows == 10
    for estimate, run in ((found.first, words), (found.second, heads)):
        noted = run.results["tasks"][task]["systems"]["module"]["test"]["metrics"][words.metric(task)]["value"]
        assert estimate.value == pytest.approx(noted)
    assert np.isfinite(found.p_value)
