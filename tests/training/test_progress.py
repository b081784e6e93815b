"""Early stopping by task, and which checkpoint is the best for all."""

from __future__ import annotations

import json

import pytest

from manyskills.config import EarlyStoppingConfig
from manyskills.data.sampling import Phase
from manyskills.training.progress import Progress, selection_score

RULE = EarlyStoppingConfig(patience=2)


def _progress(**start):
    progress = Progress([Phase(0, tuple(start))])
    progress.start(start)
    return progress


def _observe(progress, step, rule=RULE, **values):
    progress.step = step
    return progress.observe(values, rule)


def test_one_noisy_task_leaves_alone_and_never_ends_the_run():
    progress = _progress(a=0.1, b=0.5)
    for number in range(1, 9):
        improved = _observe(progress, 10 * number, a=0.1 + number / 100, b=0.4 - number / 100)
        assert improved == ["a"]
    assert progress.phases == [Phase(0, ("a", "b")), Phase(20, ("a",))]
    assert progress.active == ("a",)
    assert (progress.tasks["b"].best, progress.tasks["b"].best_step) == (0.5, 0)
    assert progress.tasks["a"].best_step == 80


def test_the_run_ends_when_none_improves():
    progress = _progress(a=0.1, b=0.5)
    _observe(progress, 1, a=0.2, b=0.5)
    _observe(progress, 2, a=0.2, b=0.5)
    assert progress.active == ("a",)
    _observe(progress, 3, a=0.2, b=0.5)
    assert progress.active == ()
    assert [phase.start for phase in progress.phases] == [0, 2, 3]


def test_waiting_begins_anew_with_every_improvement():
    progress = _progress(a=0.1)
    for step, value in enumerate([0.05, 0.2, 0.1, 0.3, 0.2], start=1):
        _observe(progress, step, a=value)
    assert progress.active == ("a",)
    assert progress.tasks["a"].waited == 1


def test_a_task_that_left_does_not_come_back_even_if_it_improves():
    progress = _progress(a=0.1, b=0.1)
    for step in (1, 2):
        _observe(progress, step, a=0.1, b=0.1 * (step + 1))
    assert _observe(progress, 3, a=0.9, b=0.9) == ["a", "b"]
    assert progress.active == ("b",)
    assert progress.tasks["a"].best_step == 3, "its best weights can still be kept"


def test_min_delta_and_no_rule():
    progress = _progress(a=0.1)
    assert _observe(progress, 1, EarlyStoppingConfig(patience=9, min_delta=0.05), a=0.15) == []
    assert _observe(progress, 2, EarlyStoppingConfig(patience=9, min_delta=0.05), a=0.16) == ["a"]
    for step in range(3, 60):
        _observe(progress, step, None, a=0.0)
    assert progress.phases == [Phase(0, ("a",))]


def test_state_round_trip():
    progress = _progress(a=0.1, b=1 / 3)
    _observe(progress, 1, a=0.1, b=0.2)
    _observe(progress, 2, a=0.2, b=0.2)
    assert Progress.from_dict(json.loads(json.dumps(progress.to_dict()))) == progress
    fresh = Progress([Phase(0, ("a",))])
    assert Progress.from_dict(json.loads(json.dumps(fresh.to_dict()))) == fresh, "minus infinity too"


def test_selection_is_the_mean_share_of_what_was_left_to_gain():
    baseline = {"easy": 0.9, "hard": 0.1}
    assert selection_score(baseline, baseline) == 0
    assert selection_score({"easy": 1.0, "hard": 1.0}, baseline) == pytest.approx(1)
    assert selection_score({"easy": 0.95, "hard": 0.1}, baseline) == pytest.approx(0.25)
    assert selection_score({"easy": 0.95, "hard": 0.1}, baseline) > selection_score(
        {"easy": 0.9, "hard": 0.5}, baseline
    )
    assert selection_score({"easy": 0.8, "hard": 0.1}, baseline) < 0


def test_a_task_that_was_perfect_before_training_does_not_decide_alone():
    score = selection_score({"perfect": 1.0, "hard": 0.5}, {"perfect": 1.0, "hard": 0.0})
    assert score == pytest.approx(0.25)
    assert selection_score({"perfect": 0.99, "hard": 0.5}, {"perfect": 1.0, "hard": 0.0}) > 0.1
