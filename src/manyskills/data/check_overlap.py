"""What two splits of a task share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from manyskills.data.check_types import EXAMPLES, GROUP_COLUMNS, Overlap, RowKey
from manyskills.data.rows import Row
from manyskills.tasks.base import SPLITS, SplitName

View = Callable[[Row, RowKey], tuple[Any, ...]]
"""What of a row may not be in two splits."""


def group_views() -> list[tuple[str, View]]:
    """Groups are told, not blamed: some benchmarks split inside projects."""
    return [
        (f"group ({column})", lambda row, _, column=column: (row[column],) if row.get(column) else ())
        for column in GROUP_COLUMNS
    ]


def find_overlaps(
    rows: Mapping[SplitName, Sequence[Row]],
    keyed: Mapping[SplitName, Sequence[RowKey]],
    views: Sequence[tuple[str, View]],
) -> Iterator[Overlap]:
    """Every two splits that share something, by view.

    Args:
        rows: Of the splits there are.
        keyed: The numbers of each row's texts.
        views: What is looked at, with its name.
    """
    present: list[SplitName] = [split for split in SPLITS if split in rows]
    for index, earlier in enumerate(present):
        for later in present[index + 1 :]:
            for what, view in views:
                known: dict[Any, str] = {}
                for row, key in zip(rows[earlier], keyed[earlier], strict=True):
                    for part in view(row, key):
                        known.setdefault(part, row["id"])
                yield from _overlap(earlier, later, what, known, rows[later], keyed[later], view)


def _overlap(
    earlier: SplitName,
    later: SplitName,
    what: str,
    known: dict[Any, str],
    rows: Sequence[Row],
    keyed: Sequence[RowKey],
    view: View,
) -> Iterator[Overlap]:
    count, examples = 0, []
    for row, key in zip(rows, keyed, strict=True):
        shared = next((part for part in view(row, key) if part in known), None)
        if shared is not None:
            count += 1
            if len(examples) < EXAMPLES:
                examples.append(f"{later} {row['id']} = {earlier} {known[shared]}")
    if count:
        yield Overlap(earlier, later, what, count, count / len(rows), tuple(examples))
