"""What a run's measurements say about conflict between its tasks, in few numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

COLLAPSE = 0.01
"""A task whose share of the weights is below this is hardly trained any more."""


def conflict_summary(records: Iterable[Mapping[str, Any]], warnings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The entry `conflict` of results.json.

    Args:
        records: The lines of metrics.jsonl; keys that a line lacks are passed over.
        warnings: What was announced, JSON-ready.

    Returns:
        `steps`: how many were measured. `cosines`: mean cosine of each pair's gradients on the shared module over the
        measured steps that held both. `negative`: the share of these steps in which it was below 0. `norms`: mean
        length of each task's gradient, its loss scaled to 1 at chance level. `weights`: mean effective weight over all
        logged steps, 0 where the task was absent, so that they sum to 1. `warnings`.

        A gradient of exactly 0 has no direction, and no share in `cosines`, `negative` and `norms`: the first step's,
        where a head starts at 0.
    """
    trained = [record for record in records if record.get("kind") == "train"]
    measured = [record for record in trained if "gradient_norms" in record]
    cosines = _by_pair(_directed_cosines(record) for record in measured)
    norms = _by_task(_without_zeros(record["gradient_norms"]) for record in measured)
    weighed = [(record.get("steps", 1), record["weights"]) for record in trained if record.get("weights")]
    return {
        "steps": len(measured),
        "cosines": {a: {b: fmean(values) for b, values in row.items()} for a, row in cosines.items()},
        "negative": {a: {b: fmean(v < 0 for v in values) for b, values in row.items()} for a, row in cosines.items()},
        "norms": {task: fmean(values) for task, values in norms.items()},
        "weights": _mean_weights(weighed),
        "warnings": [dict(warning) for warning in warnings],
    }


def _mean_weights(weighed: Sequence[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
    """Over steps: a record stands for as many as it was made of."""
    steps = sum(count for count, _ in weighed)
    parts = _by_task({task: count * value for task, value in weights.items()} for count, weights in weighed)
    return {task: sum(values) / steps for task, values in parts.items()}


def worst_pair(conflict: Mapping[str, Any]) -> tuple[str, str] | None:
    """The pair of tasks with the lowest mean cosine; None if no pair was measured."""
    pairs = {(a, b): value for a, row in conflict["cosines"].items() for b, value in row.items()}
    return min(pairs, key=pairs.__getitem__, default=None)


def _directed_cosines(record: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """The cosines of a step, but for those of a gradient of length 0, which are written as 0."""
    still = {task for task, norm in record["gradient_norms"].items() if norm == 0}
    return {
        a: {b: value for b, value in row.items() if b not in still}
        for a, row in record.get("gradient_cosines", {}).items()
        if a not in still
    }


def _without_zeros(norms: Mapping[str, float | None]) -> dict[str, float | None]:
    return {task: norm for task, norm in norms.items() if norm != 0}


def _by_task(steps: Iterable[Mapping[str, float | None]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for values in steps:
        for task, value in values.items():
            if value is not None and math.isfinite(value):
                found.setdefault(task, []).append(value)
    return found


def _by_pair(steps: Iterable[Mapping[str, Mapping[str, float | None]]]) -> dict[str, dict[str, list[float]]]:
    """A pair that a step names the other way round is the same pair."""
    found: dict[str, dict[str, list[float]]] = {}
    for rows in steps:
        for a, row in rows.items():
            for b, value in row.items():
                if value is not None and math.isfinite(value):
                    first, second = (b, a) if a in found.get(b, {}) else (a, b)
                    found.setdefault(first, {}).setdefault(second, []).append(value)
    return found
