"""ROUGE-L (Lin 2004): the longest common subsequence of words, as rouge-score finds it."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from manyskills.evaluation.text.base import mean_metric

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer


def rouge_l(prediction: str, reference: str) -> float:
    """F measure of one row, of lower-cased runs of letters a-z and digits, without stemming: 2 p r / (p + r)."""
    return _scorer().score(target=reference, prediction=prediction)["rougeL"].fmeasure


@lru_cache(maxsize=1)
def _scorer() -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer  # imports nltk, which takes most of a second

    return RougeScorer(["rougeL"], use_stemmer=False)


ROUGE_L = mean_metric("rouge_l", rouge_l)
