"""CodeBLEU (Ren et al. 2020, arXiv 2009.10297): n-grams, keywords, syntax and data flow, a quarter each.

All four are of the whole split, their counts summed over rows first:

* `codebleu_ngram`: BLEU-4 of tokens between white space.
* `codebleu_weighted`: the same, a keyword of the language counting 5 times another word among the single words (eq. 3).
* `codebleu_syntax`: sub-trees of the references' syntax trees that the predictions have too, of all (eq. 4).
* `codebleu_dataflow`: edges of the references' data flow that the predictions have too, of all (eq. 5).

What is found twice must be there twice ("clipped"), as the paper's equations have it. Rows whose reference has no data
flow add nothing to that part; where no row has any, it is undefined and the other parts share its weight.
`codebleu_dataflow_rows` is the share of rows that have. The published evaluator differs in details: compare values of
this module with each other only.

Shapes: N rows, K statistics, B weighted samples, C parts of CodeBLEU, n the order of the n-grams.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from manyskills.evaluation.bootstrap import Floats
from manyskills.evaluation.text.base import TextMetric
from manyskills.evaluation.text.bleu import brevity_penalty
from manyskills.evaluation.text.codebleu.dataflow import data_flow
from manyskills.evaluation.text.codebleu.keywords import KEYWORDS
from manyskills.evaluation.text.codebleu.parsing import can_parse, parse
from manyskills.evaluation.text.codebleu.syntax import Shapes, subtrees
from manyskills.evaluation.text.ngrams import ORDER, clipped_counts, ngrams, shared

__all__ = ["LANGUAGES", "can_parse", "codebleu"]

LANGUAGES = tuple(KEYWORDS)

KEYWORD_WEIGHT = 5.0

NO_MATCH = 0.1
"""Counted for n-grams of which none matches, if single words do (Chen and Cherry 2014, method 1)."""


@cache
def codebleu(language: str) -> TextMetric:
    """CodeBLEU of texts in one of `LANGUAGES`, which `can_parse` must be able to read."""

    def statistics(predictions: Sequence[str], references: Sequence[str]) -> Floats:
        rows = zip(predictions, references, strict=True)
        return np.array([_row(*row, language) for row in rows], np.float64)

    return TextMetric(statistics, _values)


def _row(prediction: str, reference: str, language: str) -> list[float]:
    """n-gram matches and totals, tokens of both, weighted matches and total, then matches and totals of trees, flow."""
    predicted, wanted = prediction.split(), reference.split()
    weighted = ngrams(predicted, 1) & ngrams(wanted, 1)
    predicted_trees, wanted_trees = parse(prediction, language), parse(reference, language)
    shapes: Shapes = {}
    wanted_shapes = subtrees(wanted_trees, shapes)
    wanted_flow = data_flow(wanted_trees, language)
    return [
        *clipped_counts(predicted, wanted),
        len(predicted),
        len(wanted),
        _weight(list(weighted.elements()), language),
        _weight(predicted, language),
        shared(subtrees(predicted_trees, shapes), wanted_shapes),
        wanted_shapes.total(),
        shared(data_flow(predicted_trees, language), wanted_flow),
        wanted_flow.total(),
        float(bool(wanted_flow)),
        1.0,
    ]


def _weight(tokens: Sequence[object], language: str) -> float:
    return sum(KEYWORD_WEIGHT if token in KEYWORDS[language] else 1.0 for token in tokens)


def _values(sums_BK: Floats) -> dict[str, Floats]:
    matches_Bn, totals_Bn = sums_BK[:, :ORDER], sums_BK[:, ORDER : 2 * ORDER]
    found_B, wanted_B, weighted_B, weight_B, *rest = sums_BK[:, 2 * ORDER :].T
    trees_B, all_trees_B, flow_B, all_flow_B, with_flow_B, rows_B = rest
    brevity_B = brevity_penalty(found_B, wanted_B)
    precisions_Bn = np.maximum(matches_Bn, NO_MATCH) / np.maximum(totals_Bn, 1.0)
    precisions_Bn[:, 0] = np.where(matches_Bn[:, 0] > 0, precisions_Bn[:, 0], 0.0)
    weighted_Bn = precisions_Bn.copy()
    weighted_Bn[:, 0] = weighted_B / np.maximum(weight_B, 1.0)
    parts_BC = np.stack(
        [
            brevity_B * _geometric_mean(precisions_Bn),
            brevity_B * _geometric_mean(weighted_Bn),
            _share(trees_B, all_trees_B),
            _share(flow_B, all_flow_B),
        ],
        axis=1,
    )
    names = ("codebleu_ngram", "codebleu_weighted", "codebleu_syntax", "codebleu_dataflow")
    return {
        "codebleu": np.nanmean(parts_BC, axis=1),
        **dict(zip(names, parts_BC.T, strict=True)),
        "codebleu_dataflow_rows": with_flow_B / rows_B,
    }


def _geometric_mean(values_Bn: Floats) -> Floats:
    return np.prod(np.minimum(values_Bn, 1.0), axis=1) ** (1 / values_Bn.shape[1])


def _share(part_B: Floats, whole_B: Floats) -> Floats:
    return np.where(whole_B > 0, part_B / np.maximum(whole_B, 1.0), np.nan)
