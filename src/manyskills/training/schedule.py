"""How long a run is and when it validates and saves."""

from __future__ import annotations

import math
from dataclasses import dataclass

from manyskills.config import TrainConfig
from manyskills.config.pretraining import PretrainConfig

VALIDATIONS = 10
"""Of a run that does not say."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Steps of a run.

    Attributes:
        total: Updates in all. An epoch is as many examples as all tasks have training rows together.
        eval_steps: Updates between validations.
        save_steps: Updates between checkpoints.
    """

    total: int
    eval_steps: int
    save_steps: int

    @classmethod
    def of(cls, config: TrainConfig, train_rows: int) -> Schedule:
        """From the configuration and the number of training rows of all tasks."""
        total = config.max_steps or max(1, math.ceil(config.num_train_epochs * train_rows / config.batch_size))
        eval_steps = config.eval_steps or max(1, math.ceil(total / VALIDATIONS))
        return cls(total, eval_steps, config.save_steps or eval_steps)

    def validates(self, done: int) -> bool:
        """Whether to validate after so many updates; always after the last."""
        return done % self.eval_steps == 0 or done == self.total

    def saves(self, done: int) -> bool:
        """Whether to save after so many updates."""
        return done % self.save_steps == 0 or done == self.total


def rate_factor(step: int, total_steps: int, config: TrainConfig | PretrainConfig) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then linear or cosine decay to 0, or constant."""
    warmup = math.ceil(total_steps * config.warmup_ratio)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(total_steps - warmup, 1)
    match config.lr_scheduler_type:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - progress
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
