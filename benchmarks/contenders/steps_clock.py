"""Measures a Hugging Face trainer's steps, without what it does once before and after them."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback

from contenders.ours import synchronize
from measuring import Clock, Cost


class StepsClock(TrainerCallback):
    """Reads the clock when the steps begin and end.

    Args:
        device: Is waited for.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.clock = Clock()
        self.cost = Cost(0.0, 0.0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start."""
        self.clock = Clock()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop."""
        synchronize(self.device)
        self.cost = self.clock.read()


def timed(trainer: Any, device: torch.device) -> StepsClock:
    """Give a trainer a clock, and take away what prints."""
    from transformers import PrinterCallback

    clock = StepsClock(device)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(clock)
    return clock
