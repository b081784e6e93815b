"""How much to mine, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from manyskills.tasks.base import SplitName


@dataclass(frozen=True, slots=True)
class MiningLimits:
    """How much is mined, and which functions count.

    Attributes:
        train: Rows of each task's training split at most; `valid` and `test` likewise.
        per_module: Functions that one module gives to one task at most.
        max_modules: Modules that are parsed at most, for code and for tests each.
        min_lines: Of a function without its docstring; the other three likewise.
        flaky_share: Share of the tests that get a root cause of flakiness.
    """

    train: int = 1200
    valid: int = 250
    test: int = 300
    per_module: int = 8
    max_modules: int = 2500
    min_lines: int = 3
    max_lines: int = 60
    min_chars: int = 40
    max_chars: int = 1500
    flaky_share: float = 0.25

    def rows(self, split: SplitName) -> int:
        """The limit of one split."""
        return {"train": self.train, "valid": self.valid, "test": self.test}[split]

    def admits(self, code: str) -> bool:
        """Whether a function is neither too short nor too long."""
        lines = code.count("\n") + 1
        return self.min_lines <= lines <= self.max_lines and self.min_chars <= len(code) <= self.max_chars


@dataclass(frozen=True, slots=True)
class SplitCount:
    """Rows of one split; `positive` is None for tasks without labels."""

    rows: int
    positive: int | None


@dataclass(frozen=True, slots=True)
class MiningReport:
    """What was mined.

    Attributes:
        counts: By task and split.
        modules: How many files were read.
        warnings: What a person should know, one sentence each; empty if every limit was reached.
    """

    output_dir: Path
    counts: Mapping[str, Mapping[SplitName, SplitCount]]
    modules: int
    warnings: tuple[str, ...]
