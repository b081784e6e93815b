"""What a train record of metrics.jsonl says about the steps since the record before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Interval:
    """Sums over these steps; they travel with the checkpoint, so a resumed run writes the same records.

    Attributes:
        steps: How many.
        counts: By task, how many of them held it.
        losses: By task, sum of its losses as they are.
        scaled_losses: By task, sum of its losses, 1 being chance level.
        weights: By task, sum of its effective weights.
    """

    steps: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    scaled_losses: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)

    def add(
        self, losses: Mapping[str, float], scaled_losses: Mapping[str, float], weights: Mapping[str, float]
    ) -> None:
        """One more step, by task."""
        self.steps += 1
        for task in losses:
            self.counts[task] = self.counts.get(task, 0) + 1
        for sums, values in ((self.losses, losses), (self.scaled_losses, scaled_losses), (self.weights, weights)):
            for task, value in values.items():
                sums[task] = sums.get(task, 0.0) + value

    def means(self) -> dict[str, Any]:
        """Each task's mean losses over the steps that held it, and its mean weight over all steps: those sum to 1."""
        return {
            "steps": self.steps,
            "loss": {task: total / self.counts[task] for task, total in self.losses.items()},
            "scaled_loss": {task: total / self.counts[task] for task, total in self.scaled_losses.items()},
            "weights": {task: total / self.steps for task, total in self.weights.items()},
        }
