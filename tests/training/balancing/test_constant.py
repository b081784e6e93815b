"""`uniform` and `fixed`, and the table of all rules."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from manyskills.config import TrainConfig
from manyskills.training.balancing import collapsed, shares
from tests.training.balancing.helpers import make


def test_uniform_is_the_mean_over_the_tasks_that_are_there():
    rule = make("uniform")
    assert rule.weigh({"a": 0.9, "b": 2.0, "c": 0.2}) == pytest.approx(dict.fromkeys("abc", 1 / 3))
    assert rule.weigh({"c": 0.2, "a": 0.9}) == {"c": 0.5, "a": 0.5}


def test_fixed_weights_are_normalised_over_the_tasks_that_are_there():
    rule = make("fixed", weights={"a": 2, "b": 0, "c": 6})
    assert rule.weigh({"a": 0.9, "b": 2.0, "c": 0.2}) == {"a": 0.25, "b": 0.0, "c": 0.75}
    assert rule.weigh({"a": 0.9}) == {"a": 1.0}
    assert rule.weigh({"b": 2.0}) == {"b": 0.0}


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"flaky_tests": 1, "code_search": 1, "clones": 1}, "clones is no task of this run"),
        ({"flaky_tests": 1}, "no weight for code_search"),
        ({"flaky_tests": 0, "code_search": 0}, "all weights are 0"),
    ],
)
def test_wrong_weights_are_found_in_the_configuration(weights, said):
    with pytest.raises(ValidationError, match=said):
        TrainConfig.model_validate(
            {"tasks": ["flaky_tests", "code_search"], "balancing": {"name": "fixed", "weights": weights}}
        )


def test_raw_losses_reach_the_rules_that_are_configured_so():
    assert not make("uniform").raw_losses
    assert make("uniform", losses="raw").raw_losses
    assert make("learned_softmax").raw_losses


def test_collapse_is_a_share_under_one_percent():
    assert collapsed({"a": 0.01, "b": 0.0099}) == ["b"]
    assert collapsed(shares({"a": 200.0, "b": 1.0, "c": 5.0})) == ["b"]
    assert collapsed(shares({"a": 2.0, "b": -1.0})) == ["b"]  # pushed the other way
