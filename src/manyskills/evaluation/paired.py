"""Two systems compared on the same rows: interval, test and effect size of the difference; correction for many tests.

A metric of decisions or of ranks is a function of sums over rows: F1 of the numbers of true positives, false positives
and false negatives, MRR of the sum of reciprocal ranks. So each row is a few numbers, its parts, and the metrics of
resampled rows, and of rows that are swapped between the systems, are matrix products.

A system is one or several runs that differ in their seed. Rows and seeds are two sources of chance: everything here is
about the rows, with the runs as they are.

Shapes: N rows, F parts of a row, S runs of a system, X parts of a row in all runs, B resamples or permutations of one
block, R resamples, D rows on which the systems differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from manyskills.errors import UserError
from manyskills.evaluation.bootstrap import BLOCK_CELLS, Floats, estimates, resample_counts
from manyskills.evaluation.classification import decision_metrics
from manyskills.evaluation.ranking import ranking_gains
from manyskills.evaluation.scores import Estimate

DECISION_METRICS = ("accuracy", "f1", "precision", "recall", "mcc")
ROUNDING = 1e-12
"""Metrics nearer than this are equal: sums of thirds depend on their order."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A first system against a second one on the same rows; values are means over each system's runs.

    Attributes:
        metric: What is compared.
        rows: Rows of the split.
        first: Its value with interval.
        second: Likewise.
        difference: First minus second, with the paired interval: both stand on the same resamples.
        better: Rows that the first answers better (decides right more often over its runs, ranks higher on average).
        worse: Rows that it answers worse.
        p_value: Of `swap_test`, two-sided.
    """

    metric: str
    rows: int
    first: Estimate
    second: Estimate
    difference: Estimate
    better: int
    worse: int
    p_value: float

    @property
    def effect(self) -> float | None:
        """Cohen's g: the share of better rows among those answered better or worse, less one half. None: there are
        none (Cohen 1988, Statistical Power Analysis, chapter 5)."""
        return self.better / (self.better + self.worse) - 0.5 if self.better + self.worse else None

    @property
    def effect_words(self) -> str:
        """Cohen's names for sizes of g: small from 0.05, medium from 0.15, large from 0.25."""
        if self.effect is None:
            return "no effect"
        names = {0.25: "large", 0.15: "medium", 0.05: "small", 0.0: "negligible"}
        return f"{next(name for least, name in names.items() if abs(self.effect) >= least - ROUNDING)} effect"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, the effect included."""
        return asdict(self) | {"effect": self.effect, "effect_words": self.effect_words}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Comparison:
        """The inverse of `to_dict`."""
        first, second, difference = (Estimate.from_dict(data[name]) for name in ("first", "second", "difference"))
        counts = data["better"], data["worse"]
        return cls(data["metric"], data["rows"], first, second, difference, *counts, data["p_value"])


def decision_parts(labels_N: npt.ArrayLike, decisions_N: npt.ArrayLike) -> Floats:
    """Parts of one run's yes-or-no answers, shape (N, 4): true and false positive, false and true negative."""
    labels_N, decisions_N = np.asarray(labels_N, dtype=bool), np.asarray(decisions_N, dtype=bool)
    parts = [labels_N & decisions_N, ~labels_N & decisions_N, labels_N & ~decisions_N, ~labels_N & ~decisions_N]
    return np.stack(parts, axis=1).astype(np.float64)


def rank_parts(ranks_N: npt.ArrayLike, metric: str) -> Floats:
    """Parts of one run's ranks, shape (N, 2): what the row adds to the metric, and 1.

    Raises:
        UserError: The metric is none of ranks.
    """
    names, gains_NM = ranking_gains(ranks_N, (10, 1000))
    if metric not in names:
        raise UserError(f"{metric!r} is no mean over ranks", f"such metrics are: {', '.join(names)}")
    gains_N = gains_NM[:, names.index(metric)]
    return np.stack([gains_N, np.ones_like(gains_N)], axis=1)


def metric_of_sums(sums: Floats, metric: str) -> Floats:
    """The metric of sums of parts, shape (..., F) -> (...); NaN where it is undefined.

    Raises:
        UserError: It is no function of sums over rows, as ROC-AUC is none.
    """
    if sums.shape[-1] == 2:
        return sums[..., 0] / sums[..., 1]
    if metric not in DECISION_METRICS:
        hint = f"choose a primary metric among: {', '.join(DECISION_METRICS)}"
        raise UserError(f"{metric} is no metric of decisions, and the paired test swaps decisions", hint)
    true_pos, false_pos, false_neg, true_neg = np.moveaxis(sums, -1, 0)
    return decision_metrics(true_pos, false_pos, false_neg, true_neg)[metric]


def paired_replicates(first_SNF: Floats, second_SNF: Floats, metric: str, *, samples: int, seed: int) -> Floats:
    """The metric of both systems on the same resamples of the rows, shape (2, R); the mean over a system's runs.

    Args:
        first_SNF: Parts of the runs of the first system.
        second_SNF: Of the second, of which there may be another number; the rows are the same.
        metric: What is computed.
        samples: R.
        seed: Of the resampling (see `manyskills.evaluation.bootstrap`).
    """
    runs = len(first_SNF)
    rows, parts = first_SNF.shape[1:]
    parts_NX = np.concatenate([first_SNF, second_SNF]).transpose(1, 0, 2).reshape(rows, -1)
    blocks = []
    for counts_BN in resample_counts(rows, samples, seed):
        values_BS = metric_of_sums((counts_BN @ parts_NX).reshape(len(counts_BN), -1, parts), metric)
        blocks.append([values_BS[:, :runs].mean(axis=1), values_BS[:, runs:].mean(axis=1)])
    return np.concatenate(blocks, axis=1)


def swap_test(first_SNF: Floats, second_SNF: Floats, metric: str, *, permutations: int, seed: int) -> float:
    """p value of the difference by approximate randomisation, two-sided (Noreen 1989; Yeh 2000).

    If the systems are equally good, it does not matter which of the two gave which answer to a row. So the answers of
    all runs to a row change sides with probability one half, and p is (1 + hits) / (1 + permutations), a hit being a
    difference at least as large as the observed one. The difference is the one that is reported: of the means of the
    runs' metrics. A run changes answers with the run at its place on the other side; of unequally many runs, both sides
    are repeated until they are equally long, which keeps their means.

    Returns:
        p; 1 where no row differs between the systems, or the difference is undefined.
    """
    first_SNF, second_SNF = _equally_many(first_SNF, second_SNF)
    gaps_NSF = (second_SNF - first_SNF).transpose(1, 0, 2)
    gaps_DX = gaps_NSF[(np.abs(gaps_NSF) > ROUNDING).any(axis=(1, 2))].reshape(-1, gaps_NSF[0].size)
    first_SF, second_SF = first_SNF.sum(axis=1), second_SNF.sum(axis=1)
    observed = abs(_difference_of_means(first_SF, second_SF, metric))
    if not len(gaps_DX) or not np.isfinite(observed):
        return 1.0
    rng = np.random.default_rng(seed)
    block, hits = max(1, BLOCK_CELLS // len(gaps_DX)), 0
    for start in range(0, permutations, block):
        size = min(block, permutations - start)
        swaps_BD = rng.integers(2, size=(size, len(gaps_DX)), dtype=np.uint8).astype(np.float64)
        moved_BSF = (swaps_BD @ gaps_DX).reshape(size, *first_SF.shape)
        found_B = _difference_of_means(first_SF + moved_BSF, second_SF - moved_BSF, metric)
        hits += size - int(np.count_nonzero(np.abs(found_B) < observed - ROUNDING))
    return (1 + hits) / (1 + permutations)


def compare(
    first_SNF: Floats,
    second_SNF: Floats,
    metric: str,
    replicates_2R: Floats,
    *,
    confidence: float,
    permutations: int,
    seed: int,
) -> Comparison:
    """Everything about one difference.

    Args:
        first_SNF: Parts of the runs of the first system.
        second_SNF: Of the second, on the same rows.
        metric: What is compared; larger is better.
        replicates_2R: Of `paired_replicates`.
        confidence: For instance 0.95.
        permutations: Of `swap_test`.
        seed: Of the permutations.

    Raises:
        UserError: The metric is no function of sums over rows.
    """
    first, second = (float(run_values(parts_SNF, metric).mean()) for parts_SNF in (first_SNF, second_SNF))
    found = estimates(
        {"first": first, "second": second, "difference": first - second},
        {"first": replicates_2R[0], "second": replicates_2R[1], "difference": replicates_2R[0] - replicates_2R[1]},
        confidence,
    )
    gains_N = _quality(first_SNF) - _quality(second_SNF)
    return Comparison(
        metric,
        first_SNF.shape[1],
        **found,
        better=int(np.count_nonzero(gains_N > ROUNDING)),
        worse=int(np.count_nonzero(gains_N < -ROUNDING)),
        p_value=swap_test(first_SNF, second_SNF, metric, permutations=permutations, seed=seed),
    )


def run_values(parts_SNF: Floats, metric: str) -> Floats:
    """The metric of each run on all rows, shape (S,)."""
    return metric_of_sums(parts_SNF.sum(axis=1), metric)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p values corrected for there being several tests (Holm 1979): valid whatever the tests' dependence."""
    corrected, largest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        corrected[name] = largest
    return {name: corrected[name] for name in p_values}


def _equally_many(first_SNF: Floats, second_SNF: Floats) -> tuple[Floats, Floats]:
    """Both systems with as many runs, each of a system's runs equally often."""
    runs = np.arange(math.lcm(len(first_SNF), len(second_SNF)))
    return first_SNF[runs % len(first_SNF)], second_SNF[runs % len(second_SNF)]


def _difference_of_means(first_SF: Floats, second_SF: Floats, metric: str) -> Floats:
    """Of the means over runs, shape (..., S, F) -> (...)."""
    return (metric_of_sums(first_SF, metric) - metric_of_sums(second_SF, metric)).mean(axis=-1)


def _quality(parts_SNF: Floats) -> Floats:
    """How well each row is answered, the mean over runs: the share of right decisions, or what its rank adds."""
    right_SN = parts_SNF[..., 0] + (parts_SNF[..., 3] if parts_SNF.shape[-1] == 4 else 0.0)
    return right_SN.mean(axis=0)
