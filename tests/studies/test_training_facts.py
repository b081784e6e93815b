"""What runs measured of a task, from results.json and metrics.jsonl written by hand."""

from __future__ import annotations

import pytest

from manyskills.studies.runs import read_run
from manyskills.studies.training_facts import TrainingFacts, training_facts
from manyskills.studies.transfer import transfer
from manyskills.studies.transfer_text import task_sentences
from tests.studies.helpers import write_run

TASKS = ("flaky_tests", "defect_detection")
ANSWERS = {"flaky_tests": [1, 0, 0, 1, 0, 0], "defect_detection": [1, 1, 0, 1, 0, 0]}


def valid(step, flaky, defect):
    return {"kind": "valid", "step": step, "primary": {"flaky_tests": flaky, "defect_detection": defect}}


def trained(step, tokens, *, cosine=None):
    measured = {} if cosine is None else {
        "gradient_norms": {"flaky_tests": 1.0, "defect_detection": 3.0},
        "gradient_cosines": {"flaky_tests": {"defect_detection": cosine}},
    }  # fmt: skip
    weights = {"flaky_tests": 0.25, "defect_detection": 0.75}
    return {"kind": "train", "step": step, "tokens": tokens, "weights": weights} | measured


RECORDS = [
    valid(0, 0.1, 0.5),
    trained(10, 1000, cosine=-0.2), valid(10, 0.6, 0.6),
    trained(20, 2000, cosine=0.1), valid(20, 0.5, 0.7),
    trained(30, 3000, cosine=-0.3), valid(30, 0.4, 0.8),
    trained(40, 4000, cosine=-0.4), valid(40, 0.3, 0.7),
]  # fmt: skip
TRAINING = {"training": {"steps": 40, "best_step": 35, "tokens": 4000, "stopped": {"flaky_tests": 10}}}


def test_from_the_records(tmp_path):
    changes = {"early_stopping": {"patience": 2}}
    results = {"training": TRAINING["training"] | {"best_step": 30}}
    path = write_run(tmp_path / "run", ANSWERS, records=RECORDS, config=changes, results=results)
    found = training_facts(read_run(path), "flaky_tests")
    assert (found.own_best_step, found.own_best_value, found.shared_value) == (10, 0.6, 0.4)
    assert found.lost_by_sharing == pytest.approx(0.2)
    assert found.stopped
    assert found.measured_steps == 4
    assert found.cosines == {"defect_detection": pytest.approx(-0.2)}
    assert found.negative == {"defect_detection": 0.75}
    assert found.weight == 0.25
    assert found.gradient_share == pytest.approx(0.25 / (0.25 + 2.25))
    assert found.tokens == 3000
    # 30 steps of 8 rows, half of them flaky tests: patience of two validations is over at step 30, not before
    assert found.rows_seen == 120


def test_the_pair_stands_under_both_names(tmp_path):
    run = read_run(write_run(tmp_path / "run", ANSWERS, records=RECORDS))
    assert training_facts(run, "defect_detection").cosines == {"flaky_tests": pytest.approx(-0.2)}


def test_a_stopped_task_draws_no_more_rows(tmp_path):
    """It leaves the sampling at step 20, after one validation that was no better; the other gets its rows."""
    changes = {"early_stopping": {"patience": 1}}
    path = write_run(tmp_path / "run", ANSWERS, records=RECORDS, config=changes, results=TRAINING)
    flaky, defect = (training_facts(read_run(path), task) for task in TASKS)
    assert flaky.rows_seen == 20 * 4
    assert defect.rows_seen == 20 * 4 + 15 * 8
    assert flaky.tokens == 3500


def test_what_results_say_comes_before_the_records(tmp_path):
    conflict = {
        "steps": 7, "cosines": {"flaky_tests": {"defect_detection": 0.5}}, "negative": {}, "norms": {}, "weights": {},
    }  # fmt: skip
    path = write_run(tmp_path / "run", ANSWERS, records=RECORDS, results={"conflict": conflict})
    found = training_facts(read_run(path), "flaky_tests")
    assert (found.measured_steps, found.cosines, found.weight) == (7, {"defect_detection": 0.5}, None)


def test_what_was_not_written_is_none(tmp_path):
    path = write_run(tmp_path / "run", ANSWERS)
    (path / "metrics.jsonl").unlink()
    found = training_facts(read_run(path), "flaky_tests")
    assert found == TrainingFacts(0, None, None, None, None, False, None, None, 0, {}, {}, None, None)
    assert found.lost_by_sharing is None
    assert TrainingFacts.from_dict(found.to_dict()) == found


def test_nothing_lost_is_not_a_negative_zero(tmp_path):
    results = {"training": TRAINING["training"] | {"best_step": 10}}
    multi = write_run(tmp_path / "multi", ANSWERS, records=RECORDS, results=results)
    single = [write_run(tmp_path / task, {task: ANSWERS[task]}) for task in TASKS]
    flaky, _ = transfer([multi], single).tasks
    assert "the shared checkpoint is step 10 (+0.000 on validation)" in task_sentences(flaky)


def test_the_sentence(tmp_path):
    results = {"training": TRAINING["training"] | {"best_step": 30}}
    multi = [
        write_run(tmp_path / f"multi{seed}", ANSWERS, records=RECORDS, results=results, seed=seed) for seed in (0, 1)
    ]
    alone = {"kind": "valid", "step": 10, "primary": {"flaky_tests": 0.5}}
    single = [
        write_run(
            tmp_path / task, {task: [1, 0, 1, 0, 0, 0]}, records=[alone] if task == "flaky_tests" else [],
            results={"training": {"steps": 10, "best_step": 10, "tokens": 700}},
        )
        for task in TASKS
    ]  # fmt: skip
    flaky, _ = transfer(multi, single).tasks
    assert task_sentences(flaky).startswith("flaky_tests: +0.500 [")
    assert task_sentences(flaky).endswith(
        "Over pairs of runs the difference is +0.500 to +0.500. Its gradient opposed defect_detection's in 75% of 8 "
        "measured steps (mean cosine -0.20); it got 25% of the weight and 10% of the gradients' length; up to the kept "
        "checkpoint it drew 120 rows, 80 alone (tokens encoded: 3,000 for all tasks, 700 alone); its own best was step "
        "10, the shared checkpoint is step 30 (-0.200 on validation); it was stopped early in 2 of 2 runs."
    )
