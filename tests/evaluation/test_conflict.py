"""The means that results.json holds, against records whose means are plain."""

import json

import pytest

from manyskills.evaluation.conflict import conflict_summary, worst_pair


def _record(step, weights, norms=None, cosines=None):
    record = {"kind": "train", "step": step, "weights": weights}
    return record if norms is None else record | {"gradient_norms": norms, "gradient_cosines": cosines}


RECORDS = [
    _record(1, {"a": 0.5, "b": 0.5}, {"a": 1.0, "b": 2.0}, {"a": {"b": -0.5}}),
    {"kind": "valid", "step": 1, "primary": {"a": 0.5}},
    _record(2, {"a": 0.25, "b": 0.75}),
    _record(
        3, {"a": 0.2, "b": 0.3, "c": 0.5}, {"a": 3.0, "b": 2.0, "c": 8.0}, {"a": {"b": 0.1, "c": 0.3}, "b": {"c": 0}}
    ),
    _record(4, {"c": 1.0}, {"c": 4.0}, {}),
]


def test_means():
    summary = conflict_summary(RECORDS, [{"kind": "collapse", "task": "a"}])
    assert summary["steps"] == 3
    assert summary["norms"] == {"a": 2.0, "b": 2.0, "c": 6.0}
    assert summary["cosines"] == {"a": {"b": pytest.approx(-0.2), "c": 0.3}, "b": {"c": 0}}
    assert summary["negative"] == {"a": {"b": 0.5, "c": 0}, "b": {"c": 0}}
    assert summary["weights"] == pytest.approx({"a": 0.95 / 4, "b": 1.55 / 4, "c": 1.5 / 4})
    assert sum(summary["weights"].values()) == pytest.approx(1)
    assert summary["warnings"] == [{"kind": "collapse", "task": "a"}]
    assert json.loads(json.dumps(summary)) == summary
    assert worst_pair(summary) == ("a", "b")


def test_a_pair_named_the_other_way_round_is_the_same_pair():
    records = [
        _record(1, {}, {"a": 1.0, "b": 1.0}, {"a": {"b": 0.5}}),
        _record(2, {}, {"a": 1.0, "b": 1.0}, {"b": {"a": -0.1}}),
    ]
    assert conflict_summary(records, [])["cosines"] == {"a": {"b": pytest.approx(0.2)}}


def test_what_is_not_a_number_is_passed_over():
    records = [
        _record(1, {"a": 1.0}, {"a": float("nan"), "b": None}, {"a": {"b": float("nan"), "c": None}}),
        _record(2, {"a": 1.0}, {"a": 2.0, "b": 1.0}, {"a": {"b": 0.25}}),
    ]
    summary = conflict_summary(records, [])
    assert summary["norms"] == {"a": 2.0, "b": 1.0}
    assert summary["cosines"] == {"a": {"b": 0.25}}


def test_a_gradient_of_zero_has_no_direction_and_no_share_in_the_means():
    """As in the first step, where heads that start at zero send nothing back."""
    records = [
        _record(1, {}, {"a": 0.0, "b": 2.0, "c": 4.0}, {"a": {"b": 0.0, "c": 0.0}, "b": {"c": -0.5}}),
        _record(2, {}, {"a": 1.0, "b": 0.0, "c": 2.0}, {"b": {"a": 0.0, "c": 0.0}, "a": {"c": -0.25}}),
        _record(3, {}, {"a": 3.0, "b": 4.0, "c": 0.0}, {"a": {"b": -0.75, "c": 0.0}, "b": {"c": 0.0}}),
    ]
    summary = conflict_summary(records, [])
    assert summary["cosines"] == {"a": {"b": -0.75, "c": -0.25}, "b": {"c": -0.5}}
    assert summary["negative"] == {"a": {"b": 1.0, "c": 1.0}, "b": {"c": 1.0}}
    assert summary["norms"] == {"a": 2.0, "b": 3.0, "c": 3.0}
    assert conflict_summary([_record(1, {}, {"a": 0.0, "b": 0.0}, {"a": {"b": 0.0}})], [])["cosines"] == {}


@pytest.mark.parametrize("records", [[], [{"kind": "valid", "step": 0}], [{"kind": "train", "step": 1}]])
def test_nothing_measured(records):
    summary = conflict_summary(records, [])
    assert summary == {"steps": 0, "cosines": {}, "negative": {}, "norms": {}, "weights": {}, "warnings": []}
    assert worst_pair(summary) is None
