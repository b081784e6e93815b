"""Floors of tasks that write: the answer to the nearest training row, and the source itself.

Shapes: N training rows, Q rows to answer, b rows of one block, V words.
"""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from manyskills.data.rows import Row, SplitRows
from manyskills.evaluation.floor_scores import FloorScores, Intervals, require_rows
from manyskills.evaluation.generation import Generations, score_generations
from manyskills.evaluation.scores import TaskScores
from manyskills.evaluation.text import PROSE
from manyskills.evaluation.tfidf import BLOCK_CELLS, subwords_and_signs, tfidf_vectorizer
from manyskills.tasks import Task, Variant


def retrieval_floor(
    train: SplitRows, valid: SplitRows, test: SplitRows | None, *, samples: int, confidence: float, seed: int
) -> FloorScores:
    """For every row the answer to the training row of its variant whose source is nearest.

    Nearest by TF-IDF cosine over word parts, signs and pairs of them; of equally near rows the first. Of these choices
    tried on validation of the built-in tasks, with and without signs and pairs, this one was best or within 0.3 BLEU.

    Args:
        train: Answers come from here.
        valid: Scored only, as test is: nothing is chosen.
        test: None if there is no such split.
        samples: Bootstrap resamples.
        confidence: Of the intervals.
        seed: Of the bootstrap; retrieval has no chance in it.

    Raises:
        UserError: A split has no rows.
    """
    started = time.perf_counter()
    require_rows(train, valid, test)
    intervals = Intervals(samples, confidence, seed)
    scores = [None if rows is None else _score(nearest_answers(train, rows), intervals) for rows in (valid, test)]
    description = (
        "the answer to the training row that is nearest by TF-IDF cosine over word parts, signs and their pairs"
    )
    return _floor(scores, started, description, len(train.rows))


def copy_floor(valid: SplitRows, test: SplitRows | None, *, samples: int, confidence: float, seed: int) -> FloorScores:
    """The source as its own translation: what the two languages have in common.

    Raises:
        UserError: A split has no rows.
    """
    started = time.perf_counter()
    require_rows(valid, test)
    intervals = Intervals(samples, confidence, seed)
    scores = [None if rows is None else _score(copied_sources(rows), intervals) for rows in (valid, test)]
    return _floor(scores, started, "the source, unchanged", 0)


def can_be_copied(task: Task) -> bool:
    """Whether a source could be an answer: every variant reads code and writes code, so its source is another's target.

    Of a translation only; a sentence is no function, nor the other way round.
    """
    targets = {variant.target for variant in task.variants if variant.language != PROSE}
    return bool(task.variants) and all(v.source in targets and v.language != PROSE for v in task.variants)


def nearest_answers(train: SplitRows, rows: SplitRows) -> Generations:
    """The answers of the nearest training rows; nothing is written for a variant without training rows."""
    predictions = [""] * len(rows.rows)
    for variant in rows.task.variants:
        known = _of_variant(train, variant)
        asked = [place for place, row in enumerate(rows.rows) if row["variant"] == variant.name]
        if known and asked:
            sources = [row[variant.source] for row in known]
            nearest_Q = nearest(sources, [rows.rows[place][variant.source] for place in asked])
            for place, found in zip(asked, nearest_Q.tolist(), strict=True):
                predictions[place] = known[found][variant.target]
    return _generations(rows, predictions)


def copied_sources(rows: SplitRows) -> Generations:
    """The rows' own sources as answers."""
    source = {variant.name: variant.source for variant in rows.task.variants}
    return _generations(rows, [row[source[row["variant"]]] for row in rows.rows])


def nearest(texts: list[str], queries: list[str]) -> npt.NDArray[np.int64]:
    """Index of the text nearest to each query by TF-IDF cosine, the first of equal ones; a block at a time."""
    vectorizer = tfidf_vectorizer(len(texts), subwords_and_signs, ngram_range=(1, 2))
    texts_VN = sp.csr_matrix(sp.csr_matrix(vectorizer.fit_transform(texts)).T)
    queries_QV = sp.csr_matrix(vectorizer.transform(queries))
    size = max(1, min(256, BLOCK_CELLS // len(texts)))
    blocks = [
        np.argmax((queries_QV[start : start + size] @ texts_VN).toarray(), axis=1)
        for start in range(0, len(queries), size)
    ]
    return np.concatenate(blocks)


def _of_variant(rows: SplitRows, variant: Variant) -> list[Row]:
    return [row for row in rows.rows if row["variant"] == variant.name]


def _generations(rows: SplitRows, predictions: list[str]) -> Generations:
    target = {variant.name: variant.target for variant in rows.task.variants}
    variants = [row["variant"] for row in rows.rows]
    references = [row[target[name]] for row, name in zip(rows.rows, variants, strict=True)]
    return Generations(predictions, references, variants, rows.task)


def _score(answers: Generations, intervals: Intervals) -> TaskScores:
    return score_generations(answers, samples=intervals.samples, confidence=intervals.confidence, seed=intervals.seed)


def _floor(scores: list[TaskScores | None], started: float, description: str, train_rows: int) -> FloorScores:
    valid, test = scores
    assert valid is not None
    return FloorScores(valid, test, time.perf_counter() - started, description, train_rows)
