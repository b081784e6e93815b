"""Column names: ours, and those in somebody's files."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from manyskills.errors import UserError, did_you_mean
from manyskills.tasks.base import Task

COMMON = ("id", "project", "language")
"""Columns of any task that mean something to us beside its texts and its label."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Renames of a task's columns.

    Attributes:
        theirs: Our name -> the name in the files. A renamed column takes the place of one that had our name already.
    """

    theirs: Mapping[str, str]

    def rename(self, record: dict[str, Any]) -> dict[str, Any]:
        """The record under our names; columns that nobody renames keep theirs."""
        if not self.theirs:
            return record
        renamed = {ours: record[theirs] for ours, theirs in self.theirs.items() if theirs in record}
        moved = {self.theirs[ours] for ours in renamed}
        rest = {name: value for name, value in record.items() if name not in moved and name not in renamed}
        return renamed | rest

    def missing(self, place: str, wanted: Iterable[str], record: Mapping[str, Any], instead: str = "") -> UserError:
        """The error for a first row that lacks columns: wanted, seen, nearest, and the row's keys.

        Args:
            place: Where the row stands.
            wanted: Our names of the columns that must be there.
            record: The row under our names.
            instead: Other columns that would do.
        """
        wanted = tuple(wanted)
        lacking = [name for name in wanted if name not in record]
        named = [repr(name) + (f" (as {self.theirs[name]!r})" if name in self.theirs else "") for name in lacking]
        hints = []
        for name in lacking:
            near = difflib.get_close_matches(self.theirs.get(name, name), list(record), n=1, cutoff=0.5)
            hints.append(f"{name}: {near[0] if near else '<name in your file>'}")
        return UserError(
            f"{place}: missing column {', '.join(named)}: wanted {', '.join(wanted)}{instead}; "
            f"found {', '.join(map(str, record)) or 'no columns'}",
            f"tell which columns they are: columns: {{{', '.join(hints)}}}",
        )


def checked_columns(task: Task, columns: Mapping[str, str]) -> Columns:
    """The renames, if each is of a column that the task has.

    Raises:
        UserError: A name that the task does not know, or the same column of the file twice.
    """
    join = task.join
    known = {*task.inputs, *COMMON, *([task.label] if task.label else [])}
    known |= {join.key, join.value, *join.references} if join else set()
    known |= {"variant"} if task.variants else set()
    for ours in columns:
        if ours not in known:
            raise UserError(
                f"columns: {task.name} has no column {ours!r} (write our name: the name in your files)",
                did_you_mean(ours, known),
            )
    return Columns(dict(columns))
