"""What the peers' trainers have in common: arguments, and a clock for the steps alone, without what a trainer does once
before and after them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from contenders.ours import synchronize
from contenders.work import Work
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


def common_arguments(work: Work, folder: Path) -> dict[str, Any]:
    """Training arguments of both: one epoch on the work's device, nothing saved, nothing logged."""
    cuda = work.device.type == "cuda"
    return {
        "output_dir": str(folder),
        "num_train_epochs": 1,
        "learning_rate": work.config.learning_rate,
        "dataloader_pin_memory": cuda,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not cuda,
        "bf16": cuda,
    }
