"""What teachers count in each step of a run."""

from __future__ import annotations

import numpy as np
import pytest

from manyskills.config import DistillationConfig
from manyskills.data.text_set import Examples, Teaching, View, gather
from manyskills.tasks import get_task
from manyskills.training.distillation import annealed


def _batch():
    texts = np.arange(6).reshape(3, 2)
    taught = Teaching(np.ones((3, 2, 4), "f4"), np.arange(3), 0.8, 2.0)
    defects = Examples(get_task("defect_detection"), texts[:, :1], np.zeros(3, "f4"))
    return {"code_search": Examples(get_task("code_search"), texts, None, taught), "defect_detection": defects}


def _teaching(part: Examples | View) -> Teaching:
    assert part.teaching is not None
    return part.teaching


@pytest.mark.parametrize(("done", "weight"), [(0.0, 0.8), (0.25, 0.6), (0.5, 0.4), (0.99, 0.008)])
def test_the_teachers_weight_falls_in_a_straight_line_to_nothing(done, weight):
    batch = _batch()
    found = annealed(batch, DistillationConfig(teachers={"code_search": "run"}, weight=0.8), done)
    teaching = _teaching(found["code_search"])
    assert teaching.weight == pytest.approx(weight)
    assert teaching.temperature == 2.0
    assert found["defect_detection"] is batch["defect_detection"]
    assert _teaching(batch["code_search"]).weight == 0.8


@pytest.mark.parametrize("config", [None, DistillationConfig(teachers={"code_search": "run"}, anneal=False)])
def test_without_annealing_the_weight_stays(config):
    found = annealed(_batch(), config, 0.9)
    assert _teaching(found["code_search"]).weight == 0.8


def test_a_teachers_answers_follow_their_rows():
    answers = np.arange(3, dtype="f4") * 10
    part = Examples(
        get_task("defect_detection"), np.arange(4)[:, None], np.zeros(4, "f4"),
        Teaching(answers, np.array([2, -1, 0, 1]), 0.5, 1.0),
    )  # fmt: skip
    view = gather({"defect_detection": part.take(np.array([3, 0, 3]))}).views["defect_detection"]
    assert _teaching(view).answers().tolist() == [10, 20, 10]
    with pytest.raises(KeyError, match="no teacher was asked for"):
        _teaching(part.take(np.array([0, 1]))).answers()
