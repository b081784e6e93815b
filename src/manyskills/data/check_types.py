"""What checking data finds: the report of a task, its splits, what they share and the problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from manyskills.data.check_texts import Lengths
from manyskills.data.long_texts import Long
from manyskills.data.rows import Row
from manyskills.tasks.base import SplitName

EXAMPLES = 5
GROUP_COLUMNS = ("project", "repo")
MANY = 0.05
"""Share of rows from which a problem is an error, where a few may be chance."""
MANY_TRUNCATED = 0.1

RowKey = tuple[int, ...]
"""Numbers of a row's texts."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something found; an error makes a figure wrong, a warning makes it doubtful."""

    severity: Literal["error", "warning"]
    kind: str
    message: str
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SplitReport:
    """One split.

    Attributes:
        rows: How many were looked at.
        source: Where they came from.
        labels: Rows by label.
        duplicates: Rows that say the same as an earlier one (mirrored pairs too).
        contradictions: Distinct inputs that occur with both labels.
        lengths: Of its distinct texts, by column.
        groups: Distinct values of the group column, if there is one.
    """

    rows: int
    source: str
    labels: dict[str, int]
    duplicates: int
    contradictions: int
    lengths: dict[str, Lengths]
    groups: int | None


@dataclass(frozen=True, slots=True)
class Overlap:
    """What two splits share: `rows` of the later one occur in the earlier one."""

    earlier: SplitName
    later: SplitName
    what: str
    rows: int
    share: float
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TaskDataReport:
    """What `check_data` found for one task; `long` is what will be done with texts over `max_length`."""

    task: str
    synthetic: str | None
    max_length: int | None
    long: Long
    splits: dict[SplitName, SplitReport]
    overlaps: tuple[Overlap, ...]
    problems: tuple[Problem, ...] = field(default=())

    @property
    def errors(self) -> list[Problem]:
        """The problems that make figures wrong."""
        return [problem for problem in self.problems if problem.severity == "error"]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def group_column(rows: Sequence[Row]) -> str | None:
    """The column that says where a row comes from."""
    return next((name for name in GROUP_COLUMNS if rows and name in rows[0]), None)


def share_of(part: int, whole: int) -> str:
    """So many rows of so many, for messages."""
    return f"{part:,} of {whole:,} rows ({part / whole:.1%})"


def pairs(ids: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """Rows and the earlier ones that they repeat, as examples."""
    return tuple(f"{later} = {first}" for first, later in ids[:EXAMPLES])
