"""What a metric of texts is: a function of sums over rows.

Corpus BLEU divides counts of the whole split, a mean divides a sum of scores by the number of rows. So each metric
first gives every row some numbers (its sufficient statistics) and then makes its value of their sums. A resample of the
rows is one weighted sum more, and a thousand of them are one matrix product.

Shapes: N rows, K statistics of one metric, B weighted samples of the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from manyskills.evaluation.bootstrap import Floats


@dataclass(frozen=True, slots=True)
class TextMetric:
    """A comparison of predictions with references. All values lie between 0 and 1.

    Attributes:
        statistics: (predictions, references), N each, to statistics_NK.
        values: Sums over rows, sums_BK, to values_B by name. The first name is the metric, others are its parts.
    """

    statistics: Callable[[Sequence[str], Sequence[str]], Floats]
    values: Callable[[Floats], dict[str, Floats]]

    def __call__(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        """The values on all rows.

        Raises:
            ValueError: There is not one reference for every prediction, or there are none.
        """
        if len(predictions) != len(references) or not predictions:
            raise ValueError(f"{len(predictions)} predictions and {len(references)} references")
        sums_1K = self.statistics(predictions, references).sum(axis=0, keepdims=True)
        return {name: float(values_B[0]) for name, values_B in self.values(sums_1K).items()}


def mean_metric(name: str, row_score: Callable[[str, str], float]) -> TextMetric:
    """The mean over rows of `row_score(prediction, reference)`."""

    def statistics(predictions: Sequence[str], references: Sequence[str]) -> Floats:
        scores = [row_score(*pair) for pair in zip(predictions, references, strict=True)]
        return np.stack([np.array(scores, np.float64), np.ones(len(scores))], axis=1)

    return TextMetric(statistics, lambda sums_BK: {name: sums_BK[:, 0] / sums_BK[:, 1]})
