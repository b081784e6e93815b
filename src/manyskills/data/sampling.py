"""Which examples each step holds: a pure function of the seed, the step and which tasks are still active.

Nothing has to be stored to resume and nothing has to be agreed between processes: whoever knows the seed and the step
knows the step's examples.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import numpy as np

from manyskills.config import (
    AlternatingConfig,
    ProportionalConfig,
    RoundRobinConfig,
    SamplingConfig,
    TemperatureConfig,
)
from manyskills.data.pair_graph import local_order
from manyskills.data.prompted import PromptExamples
from manyskills.data.text_set import Examples
from manyskills.tasks.base import Kind


@dataclass(frozen=True, slots=True)
class Phase:
    """From this step on, these tasks are drawn from; a new phase begins when a task has peaked."""

    start: int
    active: tuple[str, ...]


def task_shares(sizes: Mapping[str, int], sampling: SamplingConfig) -> dict[str, float]:
    """Each task's share of the examples, or of the steps if each is of one task; the shares sum to 1.

    Args:
        sizes: Training rows of every active task.
        sampling: round_robin: equal; proportional: n_t; temperature: min(n_t, cap)^(1/T); alternating: equal, or as
            temperature where it has one.
    """
    match sampling:
        case RoundRobinConfig():
            raw = dict.fromkeys(sizes, 1.0)
        case ProportionalConfig():
            raw = {name: float(size) for name, size in sizes.items()}
        case TemperatureConfig():
            raw = _tempered(sizes, sampling.temperature, sampling.cap)
        case AlternatingConfig():
            t = sampling.temperature
            raw = dict.fromkeys(sizes, 1.0) if t is None else _tempered(sizes, t, sampling.cap)
    total = sum(raw.values())
    return {name: value / total for name, value in raw.items()}


def _tempered(sizes: Mapping[str, int], temperature: float, cap: int | None) -> dict[str, float]:
    return {name: min(size, cap or size) ** (1 / temperature) for name, size in sizes.items()}


class Stream:
    """The endless order of one task's rows: epoch after epoch, each a new permutation."""

    def __init__(self, size: int, order: Callable[[np.random.Generator], np.ndarray], key: Sequence[int]) -> None:
        self.size = size
        self._order, self._key = order, list(key)
        self._epochs: dict[int, np.ndarray] = {}

    def rows(self, start: int, count: int) -> np.ndarray:
        """Rows number `start` to `start + count` of the stream, without repeats inside the answer."""
        positions = np.arange(start, start + count)
        epochs = positions // self.size
        parts = [self._epoch(epoch)[positions[epochs == epoch] % self.size] for epoch in np.unique(epochs).tolist()]
        drawn = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
        return np.unique(drawn)  # an example that straddles two epochs counts once in a step

    def _epoch(self, epoch: int) -> np.ndarray:
        if epoch not in self._epochs:
            self._epochs = {e: order for e, order in self._epochs.items() if e >= epoch - 1}
            self._epochs[epoch] = self._order(np.random.default_rng([*self._key, epoch]))
        return self._epochs[epoch]


AnyExamples = TypeVar("AnyExamples", bound=Examples | PromptExamples)


class Sampler(Generic[AnyExamples]):
    """Draws the examples of any step.

    Args:
        examples: Training examples by task.
        sampling: How steps are shared between tasks.
        batch_size: Examples a step, over all tasks.
        seed: Of every order.
        positive_shares: Tasks whose positive rows are drawn more (or less) often than they occur.
    """

    def __init__(
        self,
        examples: Mapping[str, AnyExamples],
        sampling: SamplingConfig,
        batch_size: int,
        seed: int,
        positive_shares: Mapping[str, float] | None = None,
    ) -> None:
        self.examples, self.sampling, self.batch_size = dict(examples), sampling, batch_size
        shares = positive_shares or {}
        self._streams = {name: _streams(name, part, seed, shares.get(name)) for name, part in examples.items()}

    def at(self, step: int, phases: Sequence[Phase]) -> dict[str, AnyExamples]:
        """The examples of one step; a task whose share of this step is less than one example is absent, and in
        alternating steps all tasks but one."""
        found = {name: self.examples[name].take(rows) for name, rows in self.rows_at(step, phases).items()}
        return cast("dict[str, AnyExamples]", found)

    def rows_at(self, step: int, phases: Sequence[Phase]) -> dict[str, np.ndarray]:
        """The numbers of the rows that `at` takes."""
        rows: dict[str, np.ndarray] = {}
        before, after = self._drawn(step, phases), self._drawn(step + 1, phases)
        for name, streams in self._streams.items():
            start, end = before[name], after[name]
            if end > start:
                portions = ((stream, _portion(start, share), _portion(end, share)) for stream, share in streams)
                rows[name] = np.concatenate([stream.rows(first, last - first) for stream, first, last in portions])
        return rows

    def _drawn(self, step: int, phases: Sequence[Phase]) -> dict[str, int]:
        """How many examples of each task the steps before this one have drawn."""
        drawn = dict.fromkeys(self.examples, 0)
        whole_steps = isinstance(self.sampling, AlternatingConfig)
        portion = self.batch_size if whole_steps else 1  # examples that are dealt out at a time, all to one task
        for phase, following in zip(phases, [*phases[1:], None], strict=True):
            end = step if following is None else min(step, following.start)
            if phase.active and end > phase.start:
                sizes = {task: len(self.examples[task]) for task in phase.active}
                shares = task_shares(sizes, self.sampling)
                portions = (end - phase.start) * self.batch_size // portion
                for name, count in apportion(portions, shares).items():
                    drawn[name] += count * portion
        return drawn


def apportion(total: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers in these shares that sum to `total`, and of which none falls when `total` grows.

    Sainte-Laguë's method: with it every step holds exactly `batch_size` examples, also where shares of it are no whole
    numbers or less than one; and where whole steps are dealt out, each task's turns are spread evenly over the run.

    Args:
        total: Examples of all tasks, or steps.
        shares: Sum to 1.
    """
    # no count of the method is further than the number of tasks below its share: from there the rest is dealt out
    counts = {name: max(math.floor(total * share) - len(shares), 0) for name, share in shares.items()}
    for _ in range(total - sum(counts.values())):
        counts[max(shares, key=lambda name: shares[name] / (2 * counts[name] + 1))] += 1
    return counts


def _portion(drawn: int, share: tuple[float, bool]) -> int:
    """How many of a task's first `drawn` examples come from the stream with this share (rounded up, or the rest)."""
    fraction, first = share
    return math.ceil(drawn * fraction - 1e-9) if first else drawn - math.ceil(drawn * (1 - fraction) - 1e-9)


def _streams(
    name: str, examples: Examples | PromptExamples, seed: int, positive_share: float | None
) -> list[tuple[Stream, tuple[float, bool]]]:
    """One stream over all rows, or one over the positive and one over the negative rows."""
    key = [seed, zlib.crc32(name.encode())]
    if positive_share is None or examples.labels_E is None:
        return [(Stream(len(examples), _order_of(examples), key), (1.0, True))]
    positive, negative = np.flatnonzero(examples.labels_E == 1), np.flatnonzero(examples.labels_E == 0)
    if not len(positive) or not len(negative):
        return [(Stream(len(examples), _order_of(examples), key), (1.0, True))]
    return [
        (Stream(len(rows), _shuffled(rows), [*key, index]), (share, index == 0))
        for index, (rows, share) in enumerate([(positive, positive_share), (negative, 1 - positive_share)])
    ]


def _order_of(examples: Examples | PromptExamples) -> Callable[[np.random.Generator], np.ndarray]:
    texts_EK = examples.texts_EK if isinstance(examples, Examples) else None
    if texts_EK is not None and examples.task.kind is Kind.PAIR and texts_EK.shape[1] == 2:
        return lambda generator: local_order(texts_EK, generator)
    return _shuffled(np.arange(len(examples)))


def _shuffled(rows: np.ndarray) -> Callable[[np.random.Generator], np.ndarray]:
    return lambda generator: generator.permutation(rows)
