"""The paired interval and test against plain loops, and against enumeration of all permutations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn.metrics import f1_score, matthews_corrcoef

from manyskills.errors import UserError
from manyskills.evaluation import paired
from manyskills.evaluation.bootstrap import resample_counts
from manyskills.evaluation.paired import (
    Comparison,
    compare,
    decision_parts,
    holm,
    metric_of_sums,
    paired_replicates,
    rank_parts,
    run_values,
    swap_test,
)


def plain_f1(labels, answers):
    return 2 * (labels & answers).sum() / (labels.sum() + answers.sum())


PLAIN = {"accuracy": lambda labels, answers: (labels == answers).mean(), "f1": plain_f1}


def decisions(seed, rows, runs, share_right):
    """Labels, and the decisions of several runs that are right with some probability."""
    rng = np.random.default_rng(seed)
    labels = np.random.default_rng(99).integers(2, size=rows)
    right = rng.random((runs, rows)) < share_right
    return labels, np.where(right, labels, 1 - labels)


def parts_of(labels, runs):
    return np.stack([decision_parts(labels, run) for run in runs])


def test_values_are_those_of_scikit_learn():
    labels, runs = decisions(1, 200, 3, 0.7)
    for metric, plain in (("f1", f1_score), ("mcc", matthews_corrcoef)):
        expected = [plain(labels, run) for run in runs]
        assert run_values(parts_of(labels, runs), metric) == pytest.approx(expected)


def test_values_of_ranks():
    ranks = [1, 2, 4, 20]
    assert run_values(rank_parts(ranks, "mrr")[None], "mrr")[0] == pytest.approx((1 + 0.5 + 0.25 + 0.05) / 4)
    assert run_values(rank_parts(ranks, "recall@5")[None], "recall@5")[0] == 0.75


@pytest.mark.parametrize("metric", ["accuracy", "f1"])
def test_the_interval_is_that_of_a_plain_loop_over_the_same_resamples(metric):
    labels, first = decisions(1, 60, 2, 0.8)
    _, second = decisions(2, 60, 3, 0.6)
    replicates = paired_replicates(parts_of(labels, first), parts_of(labels, second), metric, samples=200, seed=4)
    differences = []
    for counts in np.concatenate(list(resample_counts(60, 200, 4))).astype(int):
        rows = np.repeat(np.arange(60), counts)
        means = [np.mean([PLAIN[metric](labels[rows], run[rows]) for run in runs]) for runs in (first, second)]
        differences.append(means[0] - means[1])
    found = compare(
        parts_of(labels, first), parts_of(labels, second), metric, replicates, confidence=0.9, permutations=99, seed=0
    )
    assert [found.difference.low, found.difference.high] == pytest.approx(np.quantile(differences, [0.05, 0.95]))
    assert found.difference.value == pytest.approx(found.first.value - found.second.value)


def exhaustive_p(first, second, statistic):
    """Share of all assignments of each row's two answers to the systems that differ at least as much; run by run."""
    observed = abs(statistic(first) - statistic(second))
    hits = 0
    for swaps in itertools.product([False, True], repeat=first.shape[1]):
        one, other = np.where(swaps, second, first), np.where(swaps, first, second)
        hits += abs(statistic(one) - statistic(other)) >= observed - 1e-12
    return hits / 2 ** first.shape[1]


@pytest.mark.parametrize("metric", ["accuracy", "f1"])
@pytest.mark.parametrize("runs", [(1, 1), (2, 2), (2, 1), (2, 3)])
def test_permutations_against_exhaustive_enumeration(metric, runs):
    """Of the reported difference, that of the means over runs; of unequally many, every run meets every other."""
    labels, first = decisions(5, 10, runs[0], 0.9)
    _, second = decisions(6, 10, runs[1], 0.4)
    pairs = [(n, n) for n in range(runs[0])] if runs[0] == runs[1] else list(np.ndindex(*runs))
    ones, others = first[[pair[0] for pair in pairs]], second[[pair[1] for pair in pairs]]
    expected = exhaustive_p(ones, others, lambda system: np.mean([PLAIN[metric](labels, run) for run in system]))
    found = swap_test(parts_of(labels, first), parts_of(labels, second), metric, permutations=40_000, seed=1)
    assert 0.001 < expected < 0.9
    assert found == pytest.approx(expected, abs=4 * np.sqrt(expected / 40_000) + 1e-4)


def test_the_test_is_about_the_difference_that_is_reported():
    """One run finds all ten positives, the other calls every row positive. Their mean is above that of two middling
    runs, F1 of their pooled counts far below, and p is that of the mean."""
    labels = (np.arange(200) < 10).astype(int)
    first, second = np.stack([labels, np.ones(200, int)]), np.stack([np.roll(labels, 6), np.roll(labels, -6)])
    systems = parts_of(labels, first), parts_of(labels, second)
    pooled = [metric_of_sums(system.sum(axis=(0, 1)), "f1") for system in systems]
    assert pooled[0] - pooled[1] == pytest.approx(-0.226, abs=0.001)
    replicates = paired_replicates(*systems, "f1", samples=20, seed=0)
    found = compare(*systems, "f1", replicates, confidence=0.95, permutations=4_000, seed=0)
    assert (found.first.value, found.second.value) == pytest.approx((0.548, 0.4), abs=0.001)
    hits, rng = 0, np.random.default_rng(1)
    for _ in range(4_000):
        swaps = rng.random(200) < 0.5
        ones, others = np.where(swaps, second, first), np.where(swaps, first, second)
        gap = sum(plain_f1(labels, one) - plain_f1(labels, other) for one, other in zip(ones, others, strict=True)) / 2
        hits += abs(gap) >= found.difference.value - 1e-12
    assert found.p_value == pytest.approx(hits / 4_000, abs=0.03)
    assert found.p_value > 0.05, "of the pooled counts it would be 0.001 or less"


def test_permutations_of_ranks_are_sign_flips_of_the_mean_gap():
    first, second = np.array([[1.0, 2, 1, 5, 1, 3, 2, 1]]), np.array([[4.0, 2, 3, 9, 8, 1, 7, 2]])
    expected = exhaustive_p(first, second, lambda ranks: np.mean(1 / ranks))
    parts = [np.stack([rank_parts(run, "mrr") for run in system]) for system in (first, second)]
    found = swap_test(*parts, "mrr", permutations=40_000, seed=1)
    assert found == pytest.approx(expected, abs=4 * np.sqrt(expected / 40_000))


def test_blocks_do_not_change_the_answer(monkeypatch):
    labels, first = decisions(1, 50, 2, 0.8)
    _, second = decisions(2, 50, 1, 0.7)
    systems = parts_of(labels, first), parts_of(labels, second)
    whole = swap_test(*systems, "f1", permutations=300, seed=1), paired_replicates(*systems, "f1", samples=30, seed=1)
    monkeypatch.setattr(paired, "BLOCK_CELLS", 8 * 50)
    assert swap_test(*systems, "f1", permutations=300, seed=1) == pytest.approx(whole[0], abs=0.1)
    assert (paired_replicates(*systems, "f1", samples=30, seed=1) == whole[1]).all()


def test_equal_systems_have_p_one_and_no_effect():
    labels, runs = decisions(1, 30, 2, 0.7)
    same, swapped = parts_of(labels, runs), parts_of(labels, runs[::-1])
    assert swap_test(same, swapped, "f1", permutations=50, seed=0) == 1.0
    replicates = paired_replicates(same, swapped, "f1", samples=20, seed=0)
    found = compare(same, swapped, "f1", replicates, confidence=0.95, permutations=50, seed=0)
    assert (found.better, found.worse, found.effect, found.effect_words) == (0, 0, None, "no effect")
    assert (found.difference.low, found.difference.high) == (0.0, 0.0)


def test_the_test_keeps_its_level():
    """Of two systems that are equally good, about one in twenty comparisons has p < 0.05."""
    p_values = []
    for seed in range(300):
        labels, first = decisions(2 * seed, 80, 1, 0.7)
        _, second = decisions(2 * seed + 1, 80, 1, 0.7)
        systems = parts_of(labels, first), parts_of(labels, second)
        p_values.append(swap_test(*systems, "f1", permutations=199, seed=seed))
    assert 0.01 <= np.mean(np.array(p_values) <= 0.05) <= 0.09


def test_no_positive_row_and_no_positive_decision_is_undefined():
    nothing = parts_of(np.zeros(5, int), np.zeros((1, 5), int))
    all_called = parts_of(np.zeros(5, int), np.ones((1, 5), int))
    replicates = paired_replicates(nothing, all_called, "f1", samples=10, seed=0)
    found = compare(nothing, all_called, "f1", replicates, confidence=0.95, permutations=10, seed=0)
    assert (found.first.value, found.second.value, found.difference.value) == (None, 0.0, None)
    assert found.p_value == 1.0


def test_better_and_worse_rows_and_their_effect():
    labels = np.ones(10, int)
    first = parts_of(labels, np.array([[1] * 7 + [0] * 3]))
    second = parts_of(labels, np.array([[0] * 6 + [1] * 4]))
    replicates = paired_replicates(first, second, "accuracy", samples=10, seed=0)
    found = compare(first, second, "accuracy", replicates, confidence=0.95, permutations=10, seed=0)
    assert (found.better, found.worse) == (6, 3)
    assert found.effect == pytest.approx(6 / 9 - 0.5)
    assert found.effect_words == "medium effect"
    assert Comparison.from_dict(found.to_dict()) == found


def test_holm():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )
    assert holm({"a": 0.6, "b": 0.9}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_metrics_that_are_no_sums_over_rows_are_refused():
    with pytest.raises(UserError, match="roc_auc is no metric of decisions"):
        metric_of_sums(np.ones(4), "roc_auc")
    with pytest.raises(UserError, match="'f1' is no mean over ranks"):
        rank_parts([1, 2], "f1")
