"""Classical floors: what word counts alone reach. A module that does not stand above them has learnt no code.

All of it is fitted on the training split and chosen on validation (the threshold, and the logistic regression's
regularisation); the test split is only scored.

Shapes: N rows, V words, Q queries.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from manyskills.data.rows import SplitRows
from manyskills.errors import UserError
from manyskills.evaluation.bootstrap import Floats
from manyskills.evaluation.classification import (
    choose_threshold,
    classification_metrics,
    score_classification,
    threshold_metric,
)
from manyskills.evaluation.floor_scores import FloorScores, Intervals, require_rows
from manyskills.evaluation.ranking import score_ranking
from manyskills.evaluation.retrieval import retrieval_floor
from manyskills.evaluation.scores import Estimate, TaskScores
from manyskills.evaluation.tfidf import (
    pair_cosines,
    sparse_ranks,
    subwords,
    subwords_and_signs,
    tfidf_vectorizer,
    unique,
)
from manyskills.tasks import Kind

REGULARISATION = (1.0, 3.0, 10.0, 30.0, 100.0)
"""Inverse strengths C that are tried on validation: which is best spans this range over the built-in tasks."""


def tfidf_floor(
    train: SplitRows, valid: SplitRows, test: SplitRows | None, *, samples: int, confidence: float, seed: int
) -> FloorScores:
    """The floor of the splits' task, by its kind.

    Identifiers are split into their parts. Of the choices tried on validation of the built-in tasks, these were best:

    * classify: TF-IDF of words, signs and pairs of them, logistic regression.
    * pair: TF-IDF cosine of the two texts over words and pairs of words; positive from a threshold on. A cosine is no
      probability, so the calibration metrics `ece` and `brier` are undefined.
    * embed: TF-IDF cosine of query and candidate over words; each distinct candidate text of the split counts once.
    * generate: what was written for the nearest training row (`manyskills.evaluation.retrieval`).

    Args:
        train: Fitted on.
        valid: Chooses threshold and regularisation.
        test: Scored only.
        samples: Bootstrap resamples.
        confidence: Of the intervals.
        seed: Of the bootstrap; fitting has no chance in it.

    Raises:
        UserError: A split has no rows, or the training labels are all the same.
    """
    started = time.perf_counter()
    require_rows(train, valid, test)
    if train.task.kind is Kind.GENERATE:
        return retrieval_floor(train, valid, test, samples=samples, confidence=confidence, seed=seed)
    floor, description = {
        Kind.CLASSIFY: (_classify, "TF-IDF of word parts, signs and their pairs + logistic regression"),
        Kind.PAIR: (_pair, "TF-IDF cosine of the two texts over word parts and their pairs"),
        Kind.EMBED: (_embed, "TF-IDF cosine of query and code over word parts"),
    }[train.task.kind]
    valid_scores, test_scores = floor(train, valid, test, Intervals(samples, confidence, seed))
    return FloorScores(valid_scores, test_scores, time.perf_counter() - started, description, len(train.rows))


def _classify(
    train: SplitRows, valid: SplitRows, test: SplitRows | None, intervals: Intervals
) -> tuple[TaskScores, TaskScores | None]:
    labels_N = _labels(train)
    if labels_N.min() == labels_N.max():
        raise UserError(f"{train.source}: all training labels of {train.task.name} are {labels_N[0]}")
    (column,) = train.task.inputs
    vectorizer = tfidf_vectorizer(len(train.rows), subwords_and_signs, ngram_range=(1, 2))
    train_NV = sp.csr_matrix(vectorizer.fit_transform(_column(train, column)))
    valid_NV = sp.csr_matrix(vectorizer.transform(_column(valid, column)))
    metric = threshold_metric(train.task.primary_metric)
    fitted = [_fit(train_NV, labels_N, valid_NV, _labels(valid), strength, metric) for strength in REGULARISATION]
    # An undefined metric (validation without positive rows) chooses nothing: the strongest regularisation stays.
    best = max(fitted, key=lambda fit: fit.value if np.isfinite(fit.value) else -np.inf)
    valid_scores = _score(_labels(valid), best.valid_N, best.threshold, intervals)
    if test is None:
        return valid_scores, None
    test_N = best.model.predict_proba(vectorizer.transform(_column(test, column)))[:, 1]
    return valid_scores, _score(_labels(test), test_N, best.threshold, intervals)


def _pair(
    train: SplitRows, valid: SplitRows, test: SplitRows | None, intervals: Intervals
) -> tuple[TaskScores, TaskScores | None]:
    texts = unique(text for column in train.task.inputs for text in _column(train, column))
    vectorizer = tfidf_vectorizer(len(texts), subwords, ngram_range=(1, 2)).fit(texts)
    valid_N = pair_cosines(*_sides(valid), vectorizer)
    threshold = choose_threshold(_labels(valid), valid_N, threshold_metric(train.task.primary_metric))

    def score(rows: SplitRows, cosines_N: Floats) -> TaskScores:
        scores = _score(_labels(rows), cosines_N, threshold, intervals)
        return replace(scores, metrics={**scores.metrics, "ece": Estimate(None), "brier": Estimate(None)})

    return score(valid, valid_N), None if test is None else score(test, pair_cosines(*_sides(test), vectorizer))


def _embed(
    train: SplitRows, valid: SplitRows, test: SplitRows | None, intervals: Intervals
) -> tuple[TaskScores, TaskScores | None]:
    texts = unique(text for column in train.task.inputs for text in _column(train, column))
    vectorizer = tfidf_vectorizer(len(texts), subwords, ngram_range=(1, 1)).fit(texts)

    def score(rows: SplitRows) -> TaskScores:
        query, candidate = rows.task.inputs
        texts = unique(_column(rows, candidate))
        index = {text: place for place, text in enumerate(texts)}
        answers_Q = np.array([index[text] for text in _column(rows, candidate)])
        ranks_Q = sparse_ranks(_column(rows, query), texts, answers_Q, vectorizer)
        return score_ranking(
            ranks_Q,
            candidates=len(texts),
            samples=intervals.samples,
            confidence=intervals.confidence,
            seed=intervals.seed,
        )

    return score(valid), None if test is None else score(test)


@dataclass(frozen=True, slots=True)
class _Fit:
    """A logistic regression, its probabilities on validation, and the best metric there with its threshold."""

    model: LogisticRegression
    valid_N: Floats
    threshold: float
    value: float


def _fit(
    train_NV: sp.csr_matrix,
    labels_N: npt.NDArray[np.int64],
    valid_NV: sp.csr_matrix,
    valid_labels_N: npt.NDArray[np.int64],
    strength: float,
    metric: str,
) -> _Fit:
    # liblinear's trust-region Newton (the primal) takes tens of iterations on such data and has no chance in it.
    model = LogisticRegression(C=strength, solver="liblinear", max_iter=200)
    with warnings.catch_warnings():
        # A fit that stops early is a little more regularised, which validation judges like any other.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(train_NV, labels_N)
    valid_N = model.predict_proba(valid_NV)[:, 1]
    threshold = choose_threshold(valid_labels_N, valid_N, metric)
    return _Fit(model, valid_N, threshold, classification_metrics(valid_labels_N, valid_N, threshold)[metric])


def _score(
    labels_N: npt.NDArray[np.int64], probabilities_N: Floats, threshold: float, intervals: Intervals
) -> TaskScores:
    return score_classification(
        labels_N,
        probabilities_N,
        threshold,
        samples=intervals.samples,
        confidence=intervals.confidence,
        seed=intervals.seed,
    )


def _labels(rows: SplitRows) -> npt.NDArray[np.int64]:
    assert rows.task.label is not None
    return np.array([row[rows.task.label] for row in rows.rows], dtype=np.int64)


def _sides(rows: SplitRows) -> tuple[list[str], list[str]]:
    left, right = rows.task.inputs
    return _column(rows, left), _column(rows, right)


def _column(rows: SplitRows, name: str) -> list[str]:
    return [row[name] for row in rows.rows]
