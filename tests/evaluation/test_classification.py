"""Metrics against scikit-learn and by hand; thresholds against brute force; intervals against a known case."""

from functools import partial

import numpy as np
import pytest
from sklearn import metrics as reference

from manyskills.errors import UserError
from manyskills.evaluation import classification
from manyskills.evaluation.classification import (
    CLASSIFICATION_METRICS,
    THRESHOLD_METRICS,
    choose_threshold,
    classification_metrics,
    decide,
    score_classification,
    threshold_metric,
)
from manyskills.evaluation.scores import TaskScores


def sample(seed, rows=200, decimals=None):
    rng = np.random.default_rng(seed)
    labels_N = rng.integers(0, 2, rows)
    probabilities_N = np.clip(rng.normal(0.4 + 0.2 * labels_N, 0.2), 0, 1)
    return labels_N, probabilities_N if decimals is None else probabilities_N.round(decimals)


REFERENCES = {
    "accuracy": reference.accuracy_score,
    "f1": partial(reference.f1_score, zero_division=np.nan),
    "precision": partial(reference.precision_score, zero_division=np.nan),
    "recall": partial(reference.recall_score, zero_division=np.nan),
    "mcc": reference.matthews_corrcoef,
}


def sklearn_metrics(labels_N, probabilities_N, threshold, weights_N=None):
    called_N = probabilities_N >= threshold
    options = {"sample_weight": weights_N}
    return {name: metric(labels_N, called_N, **options) for name, metric in REFERENCES.items()} | {
        "roc_auc": reference.roc_auc_score(labels_N, probabilities_N, **options),
        "average_precision": reference.average_precision_score(labels_N, probabilities_N, **options),
        "brier": reference.brier_score_loss(labels_N, probabilities_N, **options),
    }


@pytest.mark.parametrize("decimals", [None, 2, 1])
@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_scikit_learn(seed, decimals):
    labels_N, probabilities_N = sample(seed, decimals=decimals)
    found = classification_metrics(labels_N, probabilities_N, 0.5)
    assert tuple(found) == CLASSIFICATION_METRICS
    expected = sklearn_metrics(labels_N, probabilities_N, 0.5)
    assert {name: found[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize("decimals", [None, 1])
def test_weighted_rows_equal_scikit_learn(decimals):
    labels_N, probabilities_N = sample(7, decimals=decimals)
    order_N = np.lexsort((labels_N, probabilities_N))
    counts_BN = np.random.default_rng(1).integers(0, 4, (3, labels_N.size)).astype(float)
    counts_BN[:, -20:] = 0  # the highest scores drop out of the resample
    rows = classification._sorted_rows(labels_N, probabilities_N, 0.4)
    found = classification._weighted(rows, counts_BN)
    for index, counts_N in enumerate(counts_BN):
        expected = sklearn_metrics(labels_N[order_N], probabilities_N[order_N], 0.4, counts_N)
        assert {name: found[name][index] for name in expected} == pytest.approx(expected)


def test_calibration_error_by_hand():
    # 30 rows, 15 bins of 2: P is off by 0.1 wherever both labels of a bin agree, and by 0.4 where they do not.
    probabilities_N = np.concatenate([np.linspace(0.10, 0.11, 20), np.linspace(0.9, 0.91, 10)])
    labels_N = np.array([0] * 18 + [0, 1] + [1] * 10)
    gaps_K = (probabilities_N - labels_N).reshape(15, 2).mean(axis=1)
    assert classification_metrics(labels_N, probabilities_N, 0.5)["ece"] == pytest.approx(np.abs(gaps_K).mean())


def test_calibration_error_keeps_equal_probabilities_in_one_bin():
    labels_N = np.array([0, 1] * 50)
    assert classification_metrics(labels_N, np.full(100, 0.5), 0.5)["ece"] == pytest.approx(0)
    assert classification_metrics(labels_N[::-1], np.full(100, 0.8), 0.5)["ece"] == pytest.approx(0.3)


def test_row_order_does_not_matter():
    labels_N, probabilities_N = sample(3, decimals=1)
    shuffled_N = np.random.default_rng(0).permutation(labels_N.size)
    one = score_classification(labels_N, probabilities_N, 0.5, samples=50, confidence=0.9, seed=1)
    assert one == score_classification(
        labels_N[shuffled_N], probabilities_N[shuffled_N], 0.5, samples=50, confidence=0.9, seed=1
    )


@pytest.mark.parametrize(
    ("labels", "probabilities", "undefined"),
    [
        ([0, 0, 0], [0.1, 0.2, 0.3], {"f1", "precision", "recall", "roc_auc", "average_precision"}),
        ([0, 0, 0], [0.1, 0.2, 0.9], {"recall", "roc_auc", "average_precision"}),
        ([1, 1, 1], [0.1, 0.2, 0.9], {"roc_auc"}),
        ([0, 1, 1], [0.1, 0.2, 0.3], {"precision"}),
        ([1], [0.7], {"roc_auc"}),
    ],
)
def test_what_is_undefined_is_none_and_never_nan(labels, probabilities, undefined):
    scores = score_classification(labels, probabilities, 0.5, samples=20, confidence=0.95, seed=0)
    assert {name for name, estimate in scores.metrics.items() if estimate.value is None} == undefined
    assert all(scores.metrics[name].low is None for name in undefined)
    assert TaskScores.from_dict(scores.to_dict()) == scores


def test_constant_scores_are_chance():
    found = classification_metrics([0, 1, 0, 1], [0.3] * 4, 0.5)
    assert (found["roc_auc"], found["average_precision"], found["mcc"]) == (0.5, 0.5, 0)


@pytest.mark.parametrize(
    "call", [lambda y, p: classification_metrics(y, p, 0.5), lambda y, p: choose_threshold(y, p, "f1")]
)
def test_bad_input_is_one_clear_sentence(call):
    with pytest.raises(UserError, match="no rows"):
        call([], [])
    with pytest.raises(UserError, match="1 of 2 predicted probabilities are not numbers"):
        call([0, 1], [0.5, float("nan")])
    with pytest.raises(ValueError, match="equally long"):
        call([0, 1], [0.5])
    with pytest.raises(ValueError, match="0 or 1"):
        call([0, 2], [0.5, 0.5])


@pytest.mark.parametrize("metric", THRESHOLD_METRICS)
@pytest.mark.parametrize("decimals", [None, 1])
@pytest.mark.parametrize("seed", range(4))
def test_threshold_is_optimal(seed, decimals, metric):
    labels_N, probabilities_N = sample(seed, rows=40, decimals=decimals)
    threshold = choose_threshold(labels_N, probabilities_N, metric)
    candidates = [threshold, -1.0, 2.0, *probabilities_N]
    values = [REFERENCES[metric](labels_N, probabilities_N >= candidate) for candidate in candidates]
    assert values[0] == pytest.approx(max(values))
    assert threshold not in probabilities_N


def test_equally_good_thresholds_nearest_to_half():
    assert choose_threshold([0, 1], [0.2, 0.6], "f1") == pytest.approx(0.4)
    # accuracy 0.5 everywhere but in the middle cuts: 2 of 4 by calling all or none, 2 of 4 at 0.55
    assert choose_threshold([1, 0, 1, 0], [0.1, 0.5, 0.6, 0.9], "accuracy") == pytest.approx(0.55)


@pytest.mark.parametrize("score", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("labels", "called"), [([1, 1, 0], True), ([0, 0, 1], False)])
def test_threshold_of_equal_scores(score, labels, called):
    threshold = choose_threshold(labels, [score] * 3, "accuracy")
    assert decide([score] * 3, threshold).tolist() == [called] * 3


@pytest.mark.parametrize("labels", [[0, 0], [1, 1]])
@pytest.mark.parametrize("metric", THRESHOLD_METRICS)
def test_threshold_of_one_class_is_a_number(labels, metric):
    assert np.isfinite(choose_threshold(labels, [0.2, 0.7], metric))


def test_threshold_between_neighbouring_floats():
    low = np.float32(0.3)
    high = np.nextafter(low, np.float32(1))
    scores_N = np.array([low, high])
    threshold = choose_threshold([0, 1], scores_N, "accuracy")
    assert decide(scores_N, threshold).tolist() == [False, True]
    adjacent_N = np.array([0.3, np.nextafter(0.3, 1)])
    assert decide(adjacent_N, choose_threshold([0, 1], adjacent_N, "accuracy")).tolist() == [False, True]


def test_threshold_needs_a_metric_that_a_threshold_changes():
    with pytest.raises(UserError, match="roc_auc"):
        choose_threshold([0, 1], [0.1, 0.9], "roc_auc")
    assert threshold_metric("accuracy") == "accuracy"
    assert threshold_metric("roc_auc") == "f1"


def test_intervals_depend_on_the_seed_alone():
    labels_N, probabilities_N = sample(0)
    options = {"samples": 100, "confidence": 0.95}
    one = score_classification(labels_N, probabilities_N, 0.5, seed=4, **options)
    assert one == score_classification(labels_N, probabilities_N, 0.5, seed=4, **options)
    assert one != score_classification(labels_N, probabilities_N, 0.5, seed=5, **options)


def test_intervals_hold_the_value_and_grow_with_confidence():
    labels_N, probabilities_N = sample(0)
    narrow, wide = (
        score_classification(labels_N, probabilities_N, 0.5, samples=400, confidence=confidence, seed=0).metrics
        for confidence in (0.5, 0.99)
    )
    for name in CLASSIFICATION_METRICS:
        assert wide[name].low < narrow[name].low < narrow[name].value < narrow[name].high < wide[name].high


def test_no_samples_no_interval():
    labels_N, probabilities_N = sample(0)
    scores = score_classification(labels_N, probabilities_N, 0.5, samples=0, confidence=0.95, seed=0)
    assert scores.metrics["f1"].value is not None
    assert scores.metrics["f1"].low is None
    assert (scores.rows, scores.positives, scores.candidates) == (200, int(labels_N.sum()), None)


def test_interval_covers_the_true_accuracy_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        labels_N = rng.integers(0, 2, 150)
        called_N = np.where(rng.random(150) < 0.8, labels_N, 1 - labels_N).astype(float)
        accuracy = score_classification(labels_N, called_N, 0.5, samples=200, confidence=0.9, seed=trial).metrics[
            "accuracy"
        ]
        hits += accuracy.low <= 0.8 <= accuracy.high
    assert 0.84 <= hits / 200 <= 0.96
