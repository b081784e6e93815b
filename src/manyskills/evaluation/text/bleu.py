"""BLEU-4 (Papineni et al. 2002, ACL) as CodeXGLUE's two evaluators compute it (Lu et al. 2021, arXiv 2102.04664).

Both are the geometric mean of n-gram precisions for n = 1 to 4 times a penalty for brevity, but agree in little else:

| | `TRANSLATION_BLEU` | `SUMMARIZATION_BLEU` |
|---|---|---|
| tokens | between white space, case kept | words, and every other sign alone, lower-cased |
| precision | of the whole split: counts are summed first | of each row; its BLEU is averaged over rows |
| smoothing | 1 more match and n-gram for every n | the same, but for n = 2 to 4 only |
| brevity | exp(1 - r / c) if c < r | exp(1 - (r + 1) / (c + 1)) if c < r |

with c and r the tokens of predictions and references. The values of one say nothing about those of the other, nor about
sacrebleu's, whose tokens are different again.

Shapes: N rows, K statistics, B weighted samples, n the order of the n-grams.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from manyskills.evaluation.bootstrap import Floats
from manyskills.evaluation.text.base import TextMetric, mean_metric
from manyskills.evaluation.text.ngrams import ORDER, clipped_counts

WORD_OR_SIGN = re.compile(r"[^\W_]+|[^\w\s]|_")
"""The underscore is a sign of its own. The evaluator comes to this by several substitutions one after another."""

NO_MATCH = 2.0**-1022
"""What is added before a logarithm, so that a row without any common word scores about 1e-77 and not nothing."""


def sentence_tokens(text: str) -> list[str]:
    """The tokens of a summary: `Parses foo_bar.` is parses, foo, _, bar and a full stop."""
    return WORD_OR_SIGN.findall(text.lower())


def sentence_bleu(prediction: str, reference: str) -> float:
    """BLEU of one summary.

    With m_n matching of g_n n-grams: exp(min(0, 1 - (r + 1) / (c + 1))) * ((m_1 / g_1) * prod_{n=2}^4 (m_n + 1) /
    (g_n + 1))^(1/4). A prediction without any word scores exp(-r), as it does in the evaluator.
    """
    predicted, wanted = sentence_tokens(prediction), sentence_tokens(reference)
    counts = clipped_counts(predicted, wanted)
    added = [NO_MATCH] + [1.0] * (ORDER - 1)
    logs = [
        math.log(counts[n] + added[n]) - math.log(counts[n + ORDER] + added[n])
        for n in range(ORDER)
    ]  # fmt: skip
    brevity = min(0.0, 1 - (len(wanted) + 1) / (len(predicted) + 1))
    return math.exp(sum(logs) / ORDER + brevity)


def _corpus_statistics(predictions: Sequence[str], references: Sequence[str]) -> Floats:
    """Matches for n = 1 to 4, n-grams for n = 1 to 4, tokens of the prediction, tokens of the reference."""
    rows = []
    for prediction, reference in zip(predictions, references, strict=True):
        predicted, wanted = prediction.split(), reference.split()
        rows.append([*clipped_counts(predicted, wanted), len(predicted), len(wanted)])
    return np.array(rows, np.float64)


def _corpus_values(sums_BK: Floats) -> dict[str, Floats]:
    matches_Bn, totals_Bn = sums_BK[:, :ORDER], sums_BK[:, ORDER : 2 * ORDER]
    logs_B = np.log((matches_Bn + 1) / (totals_Bn + 1)).mean(axis=1)
    return {"bleu": np.exp(logs_B) * brevity_penalty(sums_BK[:, 2 * ORDER], sums_BK[:, 2 * ORDER + 1])}


def brevity_penalty(predicted_B: Floats, wanted_B: Floats) -> Floats:
    """exp(1 - r / c) where c < r, else 1 (Papineni et al. 2002); 0 where nothing was predicted."""
    ratio_B = wanted_B / np.maximum(predicted_B, 1.0)
    return np.where(predicted_B > 0, np.exp(np.minimum(0.0, 1 - ratio_B)), 0.0)


TRANSLATION_BLEU = TextMetric(_corpus_statistics, _corpus_values)
SUMMARIZATION_BLEU = mean_metric("bleu", sentence_bleu)
