"""Prompts to batches that fit a budget, and the way on when a GPU's memory does not hold one.

Shape legend: N prompts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TypeVar

import numpy as np
import torch

from manyskills.errors import UserError

_Answers = TypeVar("_Answers")


@dataclass(frozen=True, slots=True)
class Batch:
    """Prompts that are answered together.

    Attributes:
        positions: Which prompts, as positions in the list that was planned.
        limit: Tokens of an answer at most.
        first: Number of the first sample.
        samples: Answers to each prompt.
        width: Tokens of the longest prompt and of an answer.
        rows_each: Sequences a sample, such as beams.
    """

    positions: np.ndarray
    limit: int
    first: int
    samples: int
    width: int
    rows_each: int

    @property
    def tokens(self) -> int:
        """What it costs."""
        return len(self.positions) * self.samples * self.rows_each * self.width

    def halves(self) -> list[Batch]:
        """Two smaller ones; itself if it cannot be divided."""
        if len(self.positions) > 1:
            middle = (len(self.positions) + 1) // 2
            parts = (self.positions[:middle], self.positions[middle:])
            return [replace(self, positions=part) for part in parts]
        if self.samples > 1:
            middle = (self.samples + 1) // 2
            rest = replace(self, first=self.first + middle, samples=self.samples - middle)
            return [replace(self, samples=middle), rest]
        return [self]


def plan_batches(
    lengths_N: np.ndarray, limits_N: np.ndarray, token_budget: int, *, samples: int = 1, rows_each: int = 1
) -> list[Batch]:
    """Batches within a budget, longest prompts first, so that memory runs out at once or not at all.

    Args:
        lengths_N: Tokens of each prompt.
        limits_N: Tokens of each answer at most; a batch has one limit.
        token_budget: Tokens of prompts and answers of a batch, times samples and beams. A single answer may cost more.
        samples: Answers to each prompt; those of one prompt are divided if they cost more than the budget.
        rows_each: Beams.
    """
    batches: list[Batch] = []
    order_N = np.argsort(-lengths_N, kind="stable")
    start = 0
    while start < len(order_N):
        longest, limit = int(lengths_N[order_N[start]]), int(limits_N[order_N[start]])
        width = longest + limit
        fit = max(1, token_budget // (width * rows_each))  # answers
        positions = order_N[start : start + max(1, fit // samples)]
        others = np.flatnonzero(limits_N[positions] != limit)
        positions = positions[: others[0]] if len(others) else positions
        batches += [
            Batch(positions, limit, first, min(fit, samples - first), width, rows_each)
            for first in range(0, samples, fit)
        ]
        start += len(positions)
    return batches


def shared_out(batches: list[Batch], share: tuple[int, int]) -> list[Batch]:
    """One process's part of a plan: all samples of a prompt are with the same process.

    Args:
        batches: As `plan_batches` gives them.
        share: (rank, processes): every so-manieth group of prompts is this process's.
    """
    rank, processes = share
    by_prompts = [list(group) for _, group in groupby(batches, key=lambda batch: int(batch.positions[0]))]
    return [batch for group in by_prompts[rank::processes] for batch in group]


def run_batches(batches: list[Batch], work: Callable[[Batch], _Answers]) -> Iterator[tuple[Batch, _Answers]]:
    """What `work` makes of each batch; where memory does not hold one, of its halves, and later ones are as small.

    Raises:
        UserError: Not even one answer fits.
    """
    waiting = deque(batches)
    most: float = float("inf")
    while waiting:
        batch = waiting.popleft()
        if batch.tokens > most and len(parts := batch.halves()) > 1:
            waiting.extendleft(reversed(parts))
            continue
        answers = _unless_full(batch, work)
        if answers is not None:
            yield batch, answers
            continue
        torch.cuda.empty_cache()
        if len(batch.halves()) == 1:
            what = f"the GPU's memory does not hold one prompt with its answer: {batch.width} tokens"
            raise UserError(what, "lower max_new_tokens or num_beams, or answer on the CPU")
        most = batch.tokens / 2
        waiting.appendleft(batch)


def _unless_full(batch: Batch, work: Callable[[Batch], _Answers]) -> _Answers | None:
    """A function of its own: what the failed attempt holds is freed when it returns."""
    try:
        return work(batch)
    except torch.OutOfMemoryError:
        return None
