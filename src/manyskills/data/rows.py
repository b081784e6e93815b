"""The checked rows of one split: what reading hands to everything else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from manyskills.tasks.base import Example, SplitName, Task

Row = dict[str, Any]
"""Canonical column names; every row has `id` (its own, or `<file>:<line>`)."""


@dataclass(frozen=True, slots=True)
class SplitRows:
    """One split of one task, read and checked.

    Attributes:
        rows: The rows kept after `limit`, in file order.
        total: How many rows the source holds.
        source: The file or hub id they came from.
        digest: sha256 of the kept rows' content; equal digests mean equal data.
        synthetic: How the labels were made, if not by people or tools on real code; shown wherever they are used.
    """

    task: Task
    split: SplitName
    rows: list[Row]
    total: int
    source: str
    digest: str
    synthetic: str | None = None

    def examples(self, *, joint: bool = False) -> Iterable[Example]:
        """What the model sees, row by row."""
        return (self.task.example(row, joint=joint) for row in self.rows)
