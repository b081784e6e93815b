"""Metrics of a yes-or-no answer, their intervals, and the threshold.

One vectorised path computes the metrics of many weighted samples at once; the plain metric is the sample in which each
row counts once. Rows are sorted by probability a single time, because resampling changes only how often a row counts.

Shapes: N rows, P positive rows, B weighted samples, G groups of rows of equal probability, T thresholds, K bins. A 1
behind a letter (N1) is one more: sums of the first 0 to N values.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from manyskills.errors import UserError
from manyskills.evaluation.bootstrap import Floats, estimates, resample_counts
from manyskills.evaluation.scores import TaskScores

CLASSIFICATION_METRICS = (
    "accuracy",
    "f1",
    "precision",
    "recall",
    "mcc",
    "roc_auc",
    "average_precision",
    "ece",
    "brier",
)
THRESHOLD_METRICS = ("accuracy", "f1", "mcc")
CALIBRATION_BINS = 15


def classification_metrics(
    labels_N: npt.ArrayLike, probabilities_N: npt.ArrayLike, threshold: float
) -> dict[str, float]:
    """All metrics of `CLASSIFICATION_METRICS`; F1, precision and recall are those of the positive class.

    * `mcc`: Matthews correlation; 0 where either the labels or the decisions are constant, as in scikit-learn.
    * `roc_auc`: a positive row outranks a negative one; ties count half.
    * `average_precision`: sum over thresholds of precision x step in recall; tied rows enter together.
    * `ece`: expected calibration error of P(positive) with 15 bins of equal mass: the mean over rows of
      |mean probability - share of positives| in the row's bin. Equal mass rather than the equal width of Guo et al.
      2017 (arXiv 1706.04599), since with 3 % positives nearly all rows fall into one bin of equal width, and since its
      bias is smaller (Nixon et al. 2019, arXiv 1904.01685; Roelofs et al. 2022, arXiv 2012.08668). Rows of equal
      probability share a bin.
    * `brier`: mean squared difference of probability and label (Brier 1950).

    Args:
        labels_N: 0 or 1.
        probabilities_N: P(label is 1).
        threshold: A row is called positive if its probability is at least this.

    Returns:
        Value by name. NaN is undefined: ROC-AUC of a single class; recall and average precision without positive rows;
        precision without positive decisions; F1 without either.

    Raises:
        UserError: There are no rows, or a probability is not a number.
    """
    rows = _sorted_rows(labels_N, probabilities_N, threshold)
    return {name: float(values_B[0]) for name, values_B in _weighted(rows, np.ones((1, rows.labels_N.size))).items()}


def score_classification(
    labels_N: npt.ArrayLike,
    probabilities_N: npt.ArrayLike,
    threshold: float,
    *,
    samples: int,
    confidence: float,
    seed: int,
) -> TaskScores:
    """`classification_metrics` with bootstrap intervals over rows (see `manyskills.evaluation.bootstrap`).

    The threshold and the calibration bins are those of the full sample throughout. `samples` of 0 gives no intervals.

    Raises:
        UserError: There are no rows, or a probability is not a number.
    """
    rows = _sorted_rows(labels_N, probabilities_N, threshold)
    size = rows.labels_N.size
    point = _weighted(rows, np.ones((1, size)))
    blocks = [_weighted(rows, counts_BN) for counts_BN in resample_counts(size, samples, seed)]
    metrics = estimates(
        {name: float(values_B[0]) for name, values_B in point.items()},
        {name: np.concatenate([block[name] for block in blocks]) for name in point} if blocks else {},
        confidence,
        recentred=frozenset({"ece"}),
    )
    return TaskScores(metrics, float(threshold), size, int(rows.labels_N.sum()), None)


def relative_log_loss(labels_N: npt.ArrayLike, probabilities_N: npt.ArrayLike) -> float:
    """Mean log loss, divided by that of always answering the share of positives: 1 says no more than this share does.

    Where all labels are equal that would be nothing; it is then divided by log 2.

    Args:
        labels_N: 0 or 1.
        probabilities_N: P(label is 1); closer to 0 or 1 than 1e-7 counts as 1e-7.
    """
    labels_N, p_N = _checked(labels_N, probabilities_N)
    p_N = np.clip(p_N, 1e-7, 1 - 1e-7)
    rate = labels_N.mean()
    chance = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate)) if 0 < rate < 1 else np.log(2)
    return float(-(labels_N * np.log(p_N) + (1 - labels_N) * np.log(1 - p_N)).mean() / chance)


def decide(probabilities_N: npt.ArrayLike, threshold: float) -> npt.NDArray[np.bool_]:
    """Which rows are called positive.

    Compares in float64: against a float32 array NumPy would round the threshold to float32, onto one of the scores that
    it was chosen to lie between.
    """
    return np.asarray(probabilities_N, dtype=np.float64) >= threshold


def threshold_metric(primary: str) -> str:
    """What to choose a threshold by: the task's primary metric if a threshold changes it usefully, else F1."""
    return primary if primary in THRESHOLD_METRICS else "f1"


def choose_threshold(labels_N: npt.ArrayLike, probabilities_N: npt.ArrayLike, metric: str) -> float:
    """The threshold with the highest `metric` on these rows, exactly: every distinct decision is examined.

    It lies halfway between two neighbouring probabilities, so that rounding does not change a decision. Of equally good
    ones the nearest to 0.5 is taken (the lower, if two are). O(N log N).

    Args:
        labels_N: 0 or 1.
        probabilities_N: P(label is 1).
        metric: One of `THRESHOLD_METRICS`.

    Raises:
        UserError: There are no rows, a probability is not a number, or the metric is another.
    """
    if metric not in THRESHOLD_METRICS:
        raise UserError(
            f"no threshold can be chosen by {metric!r}", f"choose by one of: {', '.join(THRESHOLD_METRICS)}"
        )
    labels_N, probabilities_N = _checked(labels_N, probabilities_N)
    order_N = np.argsort(probabilities_N, kind="stable")
    scores_G, starts_G = np.unique(probabilities_N[order_N], return_index=True)
    # Threshold t calls the groups t, t + 1, … positive; the last one calls none.
    called_T = labels_N.size - np.append(starts_G, labels_N.size)
    positives = labels_N.sum()
    true_T = positives - np.append(0.0, np.cumsum(labels_N[order_N]))[np.append(starts_G, labels_N.size)]
    false_T = called_T - true_T
    values_T = decision_metrics(true_T, false_T, positives - true_T, labels_N.size - positives - false_T)[metric]
    values_T = np.where(np.isnan(values_T), -np.inf, values_T)
    thresholds_T = _between(scores_G)
    # Counts are whole numbers, so equal quality differs by rounding at most.
    best_T = thresholds_T[values_T >= values_T.max() - 1e-12] if np.isfinite(values_T.max()) else thresholds_T
    return float(best_T[np.argmin(np.abs(best_T - 0.5))])


def _between(scores_G: Floats) -> Floats:
    """A threshold below all scores, between each two, and above all."""
    lowest, highest = scores_G[0], scores_G[-1]
    below = lowest / 2 if lowest > 0 else lowest
    above = (highest + 1) / 2 if highest < 1 else np.nextafter(highest, np.inf)
    middle = scores_G[:-1] + np.diff(scores_G) / 2
    # Between adjacent floating-point numbers there is nothing: the upper one itself parts them.
    middle = np.where(middle > scores_G[:-1], middle, scores_G[1:])
    return np.concatenate([[below], middle, [above]])


@dataclass(frozen=True, slots=True)
class _SortedRows:
    """Rows by ascending probability, the negative ones first where it is equal, and what resampling does not change.

    Whatever is asked of a sample is a difference of two of its cumulated counts, of all rows or of the positive ones.

    Attributes:
        labels_N: 0.0 or 1.0.
        gaps_N: Probability - label.
        squares_N: Of the gaps.
        positives_P: The positive rows.
        called: From which row on they are called positive.
        bins_K: Where each calibration bin starts, with the end appended.
        groups: The groups of equal probability that hold a positive row.
    """

    labels_N: Floats
    gaps_N: Floats
    squares_N: Floats
    positives_P: npt.NDArray[np.int64]
    called: int
    bins_K: npt.NDArray[np.int64]
    groups: _Groups


@dataclass(frozen=True, slots=True)
class _Groups:
    """Where groups of equal probability start and end, among all rows and among the positive ones."""

    starts_G: npt.NDArray[np.int64]
    ends_G: npt.NDArray[np.int64]
    positive_starts_G: npt.NDArray[np.int64]
    positive_ends_G: npt.NDArray[np.int64]


def _checked(labels_N: npt.ArrayLike, probabilities_N: npt.ArrayLike) -> tuple[Floats, Floats]:
    labels_N, probabilities_N = np.asarray(labels_N, np.float64), np.asarray(probabilities_N, np.float64)
    if labels_N.shape != probabilities_N.shape or labels_N.ndim != 1:
        raise ValueError(
            f"labels {labels_N.shape} and probabilities {probabilities_N.shape} must be equally long lists"
        )
    if not labels_N.size:
        raise UserError("there are no rows to score", "check the split with `manyskills data check`")
    if not np.isin(labels_N, (0, 1)).all():
        raise ValueError("labels must be 0 or 1")
    bad = int((~np.isfinite(probabilities_N)).sum())
    if bad:
        raise UserError(
            f"{bad} of {labels_N.size} predicted probabilities are not numbers", "the training diverged: learn slower"
        )
    return labels_N, probabilities_N


def _sorted_rows(labels_N: npt.ArrayLike, probabilities_N: npt.ArrayLike, threshold: float) -> _SortedRows:
    labels_N, probabilities_N = _checked(labels_N, probabilities_N)
    order_N = np.lexsort((labels_N, probabilities_N))
    labels_N, probabilities_N = labels_N[order_N], probabilities_N[order_N]
    starts_G = np.flatnonzero(np.append(True, np.diff(probabilities_N) > 0))
    # A group belongs to the bin in which its first row lies, so equal probabilities are never parted.
    bins_G = starts_G * CALIBRATION_BINS // labels_N.size
    gaps_N = probabilities_N - labels_N
    return _SortedRows(
        labels_N,
        gaps_N,
        gaps_N**2,
        positives_P=np.flatnonzero(labels_N),
        called=labels_N.size - int(np.count_nonzero(decide(probabilities_N, threshold))),
        bins_K=np.append(starts_G[np.unique(bins_G, return_index=True)[1]], labels_N.size),
        groups=_groups_with_positives(labels_N, starts_G),
    )


def _groups_with_positives(labels_N: Floats, starts_G: npt.NDArray[np.int64]) -> _Groups:
    before_N1 = _cumulated(labels_N).astype(np.int64)
    ends_G = np.append(starts_G[1:], labels_N.size)
    kept_G = before_N1[ends_G] > before_N1[starts_G]
    starts_G, ends_G = starts_G[kept_G], ends_G[kept_G]
    return _Groups(starts_G, ends_G, before_N1[starts_G], before_N1[ends_G])


def _cumulated(values_N: Floats) -> Floats:
    """Sums of the first 0, 1, ... values along the last axis, which gets one longer."""
    sums_N1 = np.zeros((*values_N.shape[:-1], values_N.shape[-1] + 1))
    np.cumsum(values_N, axis=-1, out=sums_N1[..., 1:])
    return sums_N1


def _weighted(rows: _SortedRows, counts_BN: Floats) -> dict[str, Floats]:
    """Every metric of every weighted sample, in the order of `CLASSIFICATION_METRICS`."""
    all_BN1, positive_BP1 = _cumulated(counts_BN), _cumulated(counts_BN[:, rows.positives_P])
    total_B, positives_B = all_BN1[:, -1], positive_BP1[:, -1]
    true_pos_B = positives_B - positive_BP1[:, np.searchsorted(rows.positives_P, rows.called)]
    false_pos_B = total_B - all_BN1[:, rows.called] - true_pos_B
    false_neg_B = positives_B - true_pos_B
    found = decision_metrics(true_pos_B, false_pos_B, false_neg_B, total_B - positives_B - false_pos_B)
    found["roc_auc"], found["average_precision"] = _threshold_free(rows.groups, all_BN1, positive_BP1)
    bins = [slice(*edges) for edges in pairwise(rows.bins_K)]
    found["ece"] = sum(np.abs(counts_BN[:, part] @ rows.gaps_N[part]) for part in bins) / total_B
    found["brier"] = counts_BN @ rows.squares_N / total_B
    return found


def decision_metrics(true_pos: Floats, false_pos: Floats, false_neg: Floats, true_neg: Floats) -> dict[str, Floats]:
    """Metrics of the confusion matrix, elementwise; 0/0 is NaN, except for MCC."""
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.sqrt(true_pos + false_pos) * np.sqrt(true_pos + false_neg)
        spread = spread * np.sqrt(true_neg + false_pos) * np.sqrt(true_neg + false_neg)
        covariance = true_pos * true_neg - false_pos * false_neg
        return {
            "accuracy": (true_pos + true_neg) / (true_pos + false_pos + false_neg + true_neg),
            "f1": 2 * true_pos / (2 * true_pos + false_pos + false_neg),
            "precision": true_pos / (true_pos + false_pos),
            "recall": true_pos / (true_pos + false_neg),
            "mcc": np.where(spread > 0, covariance / spread, 0.0),
        }


def _threshold_free(groups: _Groups, all_BN1: Floats, positive_BP1: Floats) -> tuple[Floats, Floats]:
    """ROC-AUC and average precision of each weighted sample, from its cumulated counts of all and of positive rows."""
    total_B1, positives_B1 = all_BN1[:, -1:], positive_BP1[:, -1:]
    all_before_BG, before_BG = all_BN1[:, groups.starts_G], positive_BP1[:, groups.positive_starts_G]
    positive_BG = positive_BP1[:, groups.positive_ends_G] - before_BG
    negative_BG = all_BN1[:, groups.ends_G] - all_before_BG - positive_BG
    pairs_B = np.einsum("bg,bg->b", positive_BG, all_before_BG - before_BG + negative_BG / 2)
    precision_BG = (positives_B1 - before_BG) / np.maximum(total_B1 - all_before_BG, 1.0)  # at and above each group
    positives_B = positives_B1[:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        roc_auc_B = pairs_B / (positives_B * (total_B1[:, 0] - positives_B))
        average_precision_B = np.einsum("bg,bg->b", positive_BG, precision_BG) / positives_B
    return roc_auc_B, average_precision_B
