"""Confidence intervals by resampling rows (Efron and Tibshirani 1993, chapter 13: the percentile interval).

Rows are drawn with replacement over the whole split, not within the classes: how many positives a test set holds is
chance too, and that chance belongs into the interval of F1 and accuracy. A resample on which a metric is undefined (no
positive row was drawn) is left out for this metric.

Shapes: N rows, S resamples, B resamples of one block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from manyskills.evaluation.scores import Estimate, defined

Floats = npt.NDArray[np.float64]

BLOCK_CELLS = 1 << 19
"""Counts held at once: 4 MiB of float64, so that a block stays in the processor's cache."""


def resample_counts(rows: int, samples: int, seed: int) -> Iterator[Floats]:
    """Blocks `counts_BN`: how often each row occurs in each resample; every resample has `rows` draws.

    The same seed gives the same resamples whatever the block size.
    """
    rng = np.random.default_rng(seed)
    block = max(1, BLOCK_CELLS // rows)
    for start in range(0, samples, block):
        size = min(block, samples - start)
        draws_BN = rng.integers(rows, size=(size, rows))
        draws_BN += np.arange(size)[:, None] * rows
        yield np.bincount(draws_BN.ravel(), minlength=size * rows).reshape(size, rows).astype(np.float64)


def estimates(
    values: Mapping[str, float],
    replicates: Mapping[str, Floats],
    confidence: float,
    *,
    recentred: frozenset[str] = frozenset(),
) -> dict[str, Estimate]:
    """Each metric with its percentile interval.

    Args:
        values: Metric on all rows; NaN is undefined.
        replicates: The metric on each of the S resamples.
        confidence: For instance 0.95.
        recentred: Metrics whose resamples are first moved so that their median is `value`. Resampling adds noise to
            a sum of absolute gaps, so all resamples of a calibration error lie above it.
    """
    found = {}
    for name, value in values.items():
        known_S = replicates[name][np.isfinite(replicates[name])] if name in replicates else np.empty(0)
        if not np.isfinite(value) or not known_S.size:
            found[name] = Estimate(defined(value))
            continue
        if name in recentred:
            known_S = np.maximum(known_S - np.median(known_S) + value, 0.0)
        low, high = np.quantile(known_S, [(1 - confidence) / 2, (1 + confidence) / 2])
        found[name] = Estimate(float(value), float(low), float(high))
    return found
