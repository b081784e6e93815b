"""A part of a split that stands for the whole: random, stratified by label, the same on every machine."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from manyskills.data.rows import Row
from manyskills.tasks.base import SplitName, Task


def sample_rows(rows: Sequence[Row], limit: int, task: Task, split: SplitName, seed: int) -> list[Row]:
    """At most `limit` rows, drawn uniformly within each label and kept in file order.

    Every label keeps its share, and at least one row as long as `limit` allows. The draw depends on (seed, task name,
    split, number of rows) alone.
    """
    if limit >= len(rows):
        return list(rows)
    draw = random.Random(f"{seed}/{task.name}/{split}")
    keys = [draw.random() for _ in rows]
    strata: dict[int | None, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        strata[row.get(task.label) if task.label else None].append(index)
    counts = _shares({label: len(members) for label, members in strata.items()}, limit)
    chosen = [
        index for label, members in strata.items() for index in sorted(members, key=keys.__getitem__)[: counts[label]]
    ]
    return [rows[index] for index in sorted(chosen)]


def _shares(sizes: dict[int | None, int], limit: int) -> dict[int | None, int]:
    """How many of each label: in proportion, rounded by largest remainder, at least one each if there is room."""
    total = sum(sizes.values())
    least = 1 if limit >= len(sizes) else 0
    shares = {label: max(least, limit * size // total) for label, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda label: (-(limit * sizes[label] % total), -sizes[label]))
    while sum(shares.values()) > limit:
        shares[max(shares, key=lambda label: shares[label])] -= 1
    for label in by_remainder * 2:
        if sum(shares.values()) < limit and shares[label] < sizes[label]:
            shares[label] += 1
    return shares
