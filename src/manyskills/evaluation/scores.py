"""What an evaluation hands on: every metric with its interval, and how many rows it rests on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


def defined(value: float) -> float | None:
    """`value`, or None if it is not a finite number: how an undefined metric is written to JSON."""
    return float(value) if math.isfinite(value) else None


@dataclass(frozen=True, slots=True)
class Estimate:
    """A metric with its bootstrap confidence interval.

    Attributes:
        value: The metric on all rows. None: undefined there (ROC-AUC of one class, precision where nothing is
            predicted positive).
        low: Lower end of the interval. None: undefined, or no resamples were asked for.
        high: Upper end.
    """

    value: float | None
    low: float | None = None
    high: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        """JSON-ready; undefined is null."""
        return {"value": self.value, "low": self.low, "high": self.high}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Estimate:
        """The inverse of `to_dict`."""
        return cls(data["value"], data["low"], data["high"])


@dataclass(frozen=True, slots=True)
class TaskScores:
    """All metrics of one system on one split of one task.

    Attributes:
        metrics: Estimate by metric name; of written texts also for each variant, as `bleu/python`.
        threshold: A row is called positive from this probability on; None where nothing is classified.
        rows: Rows (for a search: queries) that were scored.
        positives: Rows with label 1; None where nothing is classified.
        candidates: Texts that each query was ranked against; None where nothing is searched.
    """

    metrics: dict[str, Estimate]
    threshold: float | None
    rows: int
    positives: int | None
    candidates: int | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without NaN."""
        return {
            "metrics": {name: estimate.to_dict() for name, estimate in self.metrics.items()},
            "threshold": self.threshold,
            "rows": self.rows,
            "positives": self.positives,
            "candidates": self.candidates,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TaskScores:
        """The inverse of `to_dict`."""
        metrics = {name: Estimate.from_dict(estimate) for name, estimate in data["metrics"].items()}
        return cls(metrics, data["threshold"], data["rows"], data["positives"], data["candidates"])
