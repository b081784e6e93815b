"""Exact match: the share of predictions that are their reference."""

from __future__ import annotations

from manyskills.evaluation.text.base import mean_metric


def same_text(prediction: str, reference: str) -> float:
    """1 if both are equal once every run of white space is one space and none is left at the ends, else 0.

    So indentation and line breaks do not count; `f(x)` and `f( x )` differ. CodeXGLUE's evaluator of translation
    compares lines without white space at their ends, which is the same for its data: one line a row, single spaces.
    """
    return float(prediction.split() == reference.split())


EXACT_MATCH = mean_metric("exact_match", same_text)
