"""Which tasks to put into one module: the best partition for every number of groups, by exact search.

A subset of K tasks is a bit mask: bit k is the k-th task.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from manyskills.errors import UserError

MOST_TASKS = 10
"""Ten tasks have 115,975 partitions; every further one multiplies that by six."""

Subset = int
Losses = Mapping[Subset, Sequence[float]]
"""By subset: the loss of each of its tasks, in their order."""


@dataclass(frozen=True, slots=True)
class Partition:
    """A way to put every task into one of several groups.

    Attributes:
        groups: Masks that share no bit and hold all tasks together, ascending.
        loss: Mean over tasks of each one's loss in its group.
    """

    groups: tuple[Subset, ...]
    loss: float


def members(subset: Subset) -> list[int]:
    """Numbers of the tasks of a subset."""
    return [task for task in range(subset.bit_length()) if subset >> task & 1]


def subsets(tasks: int) -> list[Subset]:
    """All subsets but the empty one: small ones first."""
    return sorted(range(1, 1 << tasks), key=lambda subset: (subset.bit_count(), subset))


def partitions(tasks: int) -> Iterator[tuple[Subset, ...]]:
    """Every partition once.

    Raises:
        UserError: There are too many.
    """
    if tasks > MOST_TASKS:
        raise UserError(
            f"{tasks} tasks have too many partitions to look at", f"leave some out: up to {MOST_TASKS} are compared"
        )
    return _partitions((1 << tasks) - 1)


def _partitions(rest: Subset) -> Iterator[tuple[Subset, ...]]:
    """The group of the lowest task first: any set of the others may join it."""
    if not rest:
        yield ()
        return
    first = rest & -rest
    others = rest ^ first
    company = others
    while True:
        group = first | company
        for more in _partitions(rest ^ group):
            yield tuple(sorted((group, *more)))
        if not company:
            return
        company = (company - 1) & others


def ranked(tasks: int, losses: Losses) -> list[Partition]:
    """All partitions, the one with the least mean loss first; of equals the one with fewer groups.

    Args:
        tasks: How many.
        losses: Of every subset.

    Raises:
        UserError: There are too many.
    """
    totals = {subset: sum(values) for subset, values in losses.items()}
    found = [Partition(groups, sum(totals[group] for group in groups) / tasks) for groups in partitions(tasks)]
    return sorted(found, key=lambda partition: (partition.loss, len(partition.groups), partition.groups))


def best_by_groups(found: Sequence[Partition]) -> list[Partition]:
    """The best partition for every number of groups, one group first.

    Args:
        found: As `ranked` gives them.
    """
    best: dict[int, Partition] = {}
    for partition in found:
        best.setdefault(len(partition.groups), partition)
    return [best[count] for count in sorted(best)]


def advised(found: Sequence[Partition], tolerance: float) -> Partition:
    """The fewest groups whose loss is within a tolerance of the best: each group is a module to keep and to run.

    Args:
        found: As `ranked` gives them.
        tolerance: Share of the best loss.
    """
    enough = found[0].loss * (1 + tolerance)
    return next(partition for partition in best_by_groups(found) if partition.loss <= enough)
