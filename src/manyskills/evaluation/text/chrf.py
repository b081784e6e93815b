"""chrF (Popović 2015, WMT): F score of character n-grams, of the whole split, as sacrebleu computes it.

Shapes: N rows, K statistics, B weighted samples, n the order of the n-grams (1 to 6).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from manyskills.evaluation.bootstrap import Floats
from manyskills.evaluation.text.base import TextMetric
from manyskills.evaluation.text.ngrams import character_ngrams, shared

CHARACTERS = 6
"""The longest character n-grams."""
BETA = 2.0
"""Recall counts this many times as much as precision."""


def _statistics(predictions: Sequence[str], references: Sequence[str]) -> Floats:
    """For n = 1 to 6 the n-grams of the prediction, of the reference, and of both; white space is left out."""
    rows = []
    for prediction, reference in zip(predictions, references, strict=True):
        predicted, wanted = "".join(prediction.split()), "".join(reference.split())
        row = []
        for n in range(1, CHARACTERS + 1):
            total, found = max(len(wanted) - n + 1, 0), max(len(predicted) - n + 1, 0)
            # A reference too short for any n-gram of this order says nothing about the prediction's.
            row += [found if total else 0, total, shared(character_ngrams(predicted, n), character_ngrams(wanted, n))]
        rows.append(row)
    return np.array(rows, np.float64)


def _values(sums_BK: Floats) -> dict[str, Floats]:
    """(1 + beta^2) P R / (beta^2 P + R), P and R being means over the orders that both sides have n-grams of."""
    found_Bn, total_Bn, both_Bn = (sums_BK[:, start::3] for start in range(3))
    counted_Bn = (found_Bn > 0) & (total_Bn > 0)
    orders_B = np.maximum(counted_Bn.sum(axis=1), 1)
    precision_B = np.where(counted_Bn, both_Bn / np.maximum(found_Bn, 1), 0.0).sum(axis=1) / orders_B
    recall_B = np.where(counted_Bn, both_Bn / np.maximum(total_Bn, 1), 0.0).sum(axis=1) / orders_B
    divisor_B = BETA**2 * precision_B + recall_B
    return {"chrf": (1 + BETA**2) * precision_B * recall_B / np.where(divisor_B > 0, divisor_B, 1.0)}


CHRF = TextMetric(_statistics, _values)
