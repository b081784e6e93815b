"""What is wrong with somebody's rows, gathered so that one run of a command shows all of it."""

from __future__ import annotations

from typing import Any

from manyskills.errors import UserError

SHOWN = 20


class RowProblems:
    """Gathers `place: what was wanted, what was found`; keeps the first `SHOWN` and counts the rest."""

    def __init__(self) -> None:
        self._shown: list[str] = []
        self.total = 0

    def add(self, place: str, message: str) -> None:
        """Note one problem at a place such as `train.jsonl:17`."""
        self.total += 1
        if len(self._shown) < SHOWN:
            self._shown.append(f"{place}: {message}")

    def raise_if_any(self, hint: str) -> None:
        """End with everything that was found.

        Raises:
            UserError: There was a problem.
        """
        if self.total == 1:
            raise UserError(self._shown[0], hint)
        if self.total:
            more = [f"and {self.total - SHOWN:,} more"] if self.total > SHOWN else []
            raise UserError("\n  ".join([f"{self.total:,} problems in the data:", *self._shown, *more]), hint)


def shown(value: Any) -> str:
    """A value for a message: its type and its beginning."""
    if value is None:
        return "null"
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
