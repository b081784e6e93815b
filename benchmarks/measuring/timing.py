"""Contenders measured in turns, so that whatever else the machine does hits all of them."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds that a call took.

    Attributes:
        cpu: Of this process, all its threads together; another program's load hardly changes it.
        wall: By the clock.
    """

    cpu: float
    wall: float


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as long as the reference: median over the rounds, with the smallest and the largest round."""

    cpu: float
    cpu_range: tuple[float, float]
    wall: float
    wall_range: tuple[float, float]


class Clock:
    """Starts when it is made."""

    def __init__(self) -> None:
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def read(self) -> Cost:
        """What has passed since."""
        return Cost(time.process_time() - self._cpu, time.perf_counter() - self._wall)


def measured(call: Callable[[], object]) -> Cost:
    """What one call costs; garbage of earlier ones is collected before.

    A call that returns a `Cost` has measured itself: what it sets up and puts away does not count.
    """
    gc.collect()
    clock = Clock()
    result = call()
    cost = clock.read()
    return result if isinstance(result, Cost) else cost


def interleaved(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[Cost]]:
    """What each contender costs in each round.

    Each round calls every contender once; the next round begins with the next contender, so that none always follows
    the same rest. Nothing is warmed up here. Progress goes to stderr.

    Args:
        contenders: By name, the work to measure; the same amount at every call.
        rounds: How often.
    """
    costs: dict[str, list[Cost]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            cost = measured(contenders[name])
            costs[name].append(cost)
            print(f"round {number + 1}/{rounds}  {name}: {cost.cpu:.2f} s CPU, {cost.wall:.2f} s", file=sys.stderr)
    return costs


def medians(costs: Mapping[str, Sequence[Cost]]) -> dict[str, Cost]:
    """By contender, the median of each clock over the rounds."""
    return {
        name: Cost(median(one.cpu for one in found), median(one.wall for one in found)) for name, found in costs.items()
    }


def ratios(costs: Mapping[str, Sequence[Cost]], reference: str) -> dict[str, Ratio]:
    """By contender, its cost divided by the reference's in the same round: above 1 is slower than the reference."""
    result: dict[str, Ratio] = {}
    for name, found in costs.items():
        pairs = list(zip(found, costs[reference], strict=True))
        cpu = [one.cpu / other.cpu for one, other in pairs]
        wall = [one.wall / other.wall for one, other in pairs]
        result[name] = Ratio(median(cpu), (min(cpu), max(cpu)), median(wall), (min(wall), max(wall)))
    return result
