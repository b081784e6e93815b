"""Ranks against a full sort with ties, and metrics by hand."""

import numpy as np
import pytest
from scipy.stats import rankdata

from manyskills.errors import UserError
from manyskills.evaluation import ranking
from manyskills.evaluation.ranking import ranking_metrics, ranks, score_ranking
from manyskills.evaluation.scores import TaskScores


def sorted_ranks(queries_QD, candidates_CD, answers_Q):
    scores_QC = np.asarray(queries_QD, np.float64) @ np.asarray(candidates_CD, np.float64).T
    return rankdata(-scores_QC, method="average", axis=1)[np.arange(len(answers_Q)), answers_Q]


@pytest.mark.parametrize("block", [1, 7, 1024])
@pytest.mark.parametrize("normalised", [True, False])
def test_ranks_equal_a_full_sort(block, normalised):
    rng = np.random.default_rng(0)
    queries_QD, candidates_CD = rng.normal(size=(50, 16)), rng.normal(size=(83, 16))
    if normalised:
        queries_QD /= np.linalg.norm(queries_QD, axis=1, keepdims=True)
        candidates_CD /= np.linalg.norm(candidates_CD, axis=1, keepdims=True)
    answers_Q = rng.integers(0, 83, 50)
    expected_Q = sorted_ranks(queries_QD, candidates_CD, answers_Q)
    np.testing.assert_array_equal(ranks(queries_QD, candidates_CD, answers_Q, block=block), expected_Q)


def test_ties_take_their_mean_rank():
    rng = np.random.default_rng(1)
    queries_QD, candidates_CD = rng.integers(-1, 2, (40, 4)), rng.integers(-1, 2, (60, 4))
    answers_Q = rng.integers(0, 60, 40)
    expected_Q = sorted_ranks(queries_QD, candidates_CD, answers_Q)
    np.testing.assert_array_equal(ranks(queries_QD, candidates_CD, answers_Q, block=3), expected_Q)


@pytest.mark.parametrize("candidates", [1, 5, 333])
def test_a_constant_model_is_not_flattered(candidates):
    vector_D = np.random.default_rng(0).normal(size=383)
    vectors_CD = np.tile(vector_D / np.linalg.norm(vector_D), (candidates, 1))
    found_Q = ranks(vectors_CD, vectors_CD, np.arange(candidates), block=13)
    np.testing.assert_array_equal(found_Q, np.full(candidates, (candidates + 1) / 2))


def test_an_answer_never_stands_above_its_equal_by_rounding():
    rng = np.random.default_rng(2)
    queries_QD, half_CD = rng.normal(size=(64, 384)), rng.normal(size=(101, 384))
    answers_Q = rng.integers(0, 101, 64)
    alone_Q = ranks(queries_QD, half_CD, answers_Q)
    doubled_Q = ranks(queries_QD, np.concatenate([half_CD, half_CD]), answers_Q, block=5)
    np.testing.assert_array_equal(doubled_Q, 2 * alone_Q - 0.5)


def test_many_candidates_shrink_the_block(monkeypatch):
    monkeypatch.setattr(ranking, "BLOCK_CELLS", 10)
    vectors_CD = np.eye(20)
    np.testing.assert_array_equal(ranks(vectors_CD, vectors_CD, np.arange(20)), np.ones(20))


def test_bad_input_is_one_clear_sentence():
    good_CD = np.eye(3)
    with pytest.raises(UserError, match="no query vectors"):
        ranks(np.empty((0, 3)), good_CD, [])
    with pytest.raises(UserError, match="no queries"):
        ranking_metrics([])
    with pytest.raises(UserError, match="1 of 3 candidate vectors"):
        ranks(good_CD, np.where(good_CD > 0, good_CD, [[0, np.nan, 0], [0, 0, 0], [0, 0, 0]]), [0, 1, 2])
    with pytest.raises(ValueError, match="3 queries, but 2 answers"):
        ranks(good_CD, good_CD, [0, 1])
    with pytest.raises(ValueError, match="indices of the 3"):
        ranks(good_CD, good_CD, [0, 1, 3])


def test_metrics_by_hand():
    found = ranking_metrics([1, 2.5, 10, 2000])
    assert found == pytest.approx(
        {
            "mrr": (1 + 0.4 + 0.1 + 0.0005) / 4,
            "mrr@10": 1.5 / 4,
            "mrr@1000": 1.5 / 4,
            "recall@1": 0.25,
            "recall@5": 0.5,
            "recall@10": 0.75,
            "ndcg@10": (1 + 1 / np.log2(3.5) + 1 / np.log2(11)) / 4,
        }
    )
    assert ranking_metrics([1, 4], mrr_cutoffs=[3])["mrr@3"] == 0.5


def test_scores_with_intervals():
    ranks_Q = np.random.default_rng(0).integers(1, 50, 200)
    scores = score_ranking(ranks_Q, candidates=50, samples=300, confidence=0.95, seed=0)
    assert {name: estimate.value for name, estimate in scores.metrics.items()} == pytest.approx(
        ranking_metrics(ranks_Q)
    )
    assert scores == score_ranking(ranks_Q, candidates=50, samples=300, confidence=0.95, seed=0)
    assert TaskScores.from_dict(scores.to_dict()) == scores
    assert (scores.rows, scores.candidates, scores.positives, scores.threshold) == (200, 50, None, None)
    mrr = scores.metrics["mrr"]
    error = (1 / ranks_Q).std() / np.sqrt(200)
    assert mrr.high - mrr.low == pytest.approx(2 * 1.96 * error, rel=0.15)
