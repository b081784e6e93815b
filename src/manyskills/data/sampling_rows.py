"""A part of a split that stands for the whole: random, stratified by label, the same on every machine."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import TypeVar

import numpy as np

from manyskills.data.prompted import PromptExamples
from manyskills.data.rows import Row
from manyskills.data.text_set import Examples
from manyskills.data.variants import VARIANT
from manyskills.tasks.base import SplitName, Task

AnyExamples = TypeVar("AnyExamples", Examples, PromptExamples, Examples | PromptExamples)


def sample_rows(rows: Sequence[Row], limit: int, task: Task, split: SplitName, seed: int) -> list[Row]:
    """At most `limit` rows, drawn uniformly within each label or variant and kept in file order.

    Each of them keeps its share, and at least one row as long as `limit` allows. The draw depends on (seed, task name,
    split, number of rows) alone.
    """
    column = VARIANT if task.variants else task.label
    labels = [row.get(column) if column else None for row in rows]
    return [rows[number] for number in sample_numbers(labels, limit, f"{seed}/{task.name}/{split}")]


def sample_examples(examples: AnyExamples, limit: int, key: str) -> AnyExamples:
    """The same for rows in columns; the draw depends on the key and on the number of rows alone."""
    numbers = np.array(sample_numbers(_strata(examples), limit, key), dtype=np.int64)
    return examples.take(numbers)


def _strata(examples: Examples | PromptExamples) -> list[Hashable]:
    if examples.labels_E is not None:
        return examples.labels_E.tolist()
    return examples.variants_E.tolist() if isinstance(examples, PromptExamples) else [None] * len(examples)


def sample_numbers(labels: Sequence[Hashable], limit: int, key: str) -> list[int]:
    """The numbers, ascending, of at most `limit` rows with these labels."""
    if limit >= len(labels):
        return list(range(len(labels)))
    draw = random.Random(key)
    keys = [draw.random() for _ in labels]
    strata: dict[Hashable, list[int]] = defaultdict(list)
    for number, label in enumerate(labels):
        strata[label].append(number)
    counts = _shares({label: len(members) for label, members in strata.items()}, limit)
    chosen = [
        number for label, members in strata.items() for number in sorted(members, key=keys.__getitem__)[: counts[label]]
    ]
    return sorted(chosen)


def _shares(sizes: dict[Hashable, int], limit: int) -> dict[Hashable, int]:
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
