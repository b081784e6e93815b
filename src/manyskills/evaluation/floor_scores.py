"""What a floor hands on, and what all floors need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from manyskills.data.rows import SplitRows
from manyskills.errors import UserError
from manyskills.evaluation.scores import TaskScores


@dataclass(frozen=True, slots=True)
class FloorScores:
    """A floor's results.

    Attributes:
        valid: Scores on validation, on which the threshold was chosen.
        test: Scores on test, if there is such a split.
        seconds: Wall-clock time of fitting and scoring.
        description: What it is, in a few words.
        train_rows: Training rows it was fitted on; 0 of a floor that learns nothing.
    """

    valid: TaskScores
    test: TaskScores | None
    seconds: float
    description: str
    train_rows: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, in the shape of a system of `results.json`."""
        return {
            "valid": self.valid.to_dict(),
            "test": None if self.test is None else self.test.to_dict(),
            "seconds": self.seconds,
            "description": self.description,
            "train_rows": self.train_rows,
        }


@dataclass(frozen=True, slots=True)
class Intervals:
    """How the bootstrap is done."""

    samples: int
    confidence: float
    seed: int


def require_rows(*splits: SplitRows | None) -> None:
    """Every split that is there has rows.

    Raises:
        UserError: One has none.
    """
    for rows in splits:
        if rows is not None and not rows.rows:
            raise UserError(f"{rows.source}: the {rows.split} split of {rows.task.name} has no rows")
