"""Hugging Face's Trainer, unchanged: the model gives the loss, the data set gives rows in one of its orders."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from contenders.peer import Collator, Peer, Row, rows_of
from contenders.reference import to_device
from contenders.steps_clock import timed
from contenders.work import Work
from measuring import Cost


class Order(Enum):
    """In which order the Trainer takes the rows."""

    BY_TASK = "one task a batch"
    """Rows as they were drawn; one step is one batch of each task, so each step has just our rows."""
    GROUPED = "group_by_length"
    """Sorted by length over all rows of the work, tasks mixed: what the sampler does in a long run. (In a run of a few
    steps it would sort within one step only.)"""
    REBALANCED = "batch_rebalance"
    """Sorted by length within a step, micro-batches of like cost, tasks mixed."""


class HuggingFace:
    """A Trainer for the rows of the work.

    Args:
        work: What to train on.
        peer: What is trained.
        order: Of the rows.
        folder: The Trainer wants one; nothing is written.
    """

    def __init__(self, work: Work, peer: Peer, order: Order, folder: Path) -> None:
        self.work, self.peer = work, peer
        rows = [row for batch in work.batches for row in rows_of(batch, work.store)]
        if order is Order.GROUPED:
            rows = grouped(rows, work.rows_a_task)
        self.trainer = _trainer(peer, _arguments(work, order, folder), rows)
        self.clock = timed(self.trainer, work.device)

    def run(self) -> Cost:
        """One epoch over the rows; what its steps cost."""
        self.trainer.train()
        return self.clock.cost

    def losses(self) -> dict[str, float]:
        """Each task's loss on the first step, without dropout."""
        self.peer.eval()
        collate = Collator(self.peer.tokenizer)
        with torch.no_grad():
            batch = to_device(collate(rows_of(self.work.batches[0], self.work.store)), self.work.device)
            return {name: loss.item() for name, loss in self.peer.losses(**batch).items()}


def _trainer(peer: Peer, arguments: Any, rows: Sequence[Row]) -> Any:
    from transformers import Trainer

    collator = Collator(peer.tokenizer)
    return Trainer(model=peer, args=arguments, train_dataset=rows, data_collator=collator)  # pyright: ignore


def grouped(rows: Sequence[Row], batch_size: int) -> list[Row]:
    """Rows in the order of transformers' `group_by_length`, one mega-batch over all of them."""
    from transformers.trainer_pt_utils import get_length_grouped_indices

    lengths = [len(row["input_ids"]) for row in rows]
    generator = torch.Generator().manual_seed(0)
    order = get_length_grouped_indices(lengths, batch_size, mega_batch_mult=len(rows), generator=generator)
    return [rows[index] for index in order]


def _arguments(work: Work, order: Order, folder: Path) -> Any:
    from transformers import TrainingArguments

    cuda = work.device.type == "cuda"
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=work.rows_a_task,
        gradient_accumulation_steps=len(work.batches[0]),
        learning_rate=work.config.learning_rate,
        weight_decay=work.config.weight_decay,
        train_sampling_strategy="batch_rebalance" if order is Order.REBALANCED else "sequential",
        remove_unused_columns=False,
        dataloader_pin_memory=cuda,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not cuda,
        bf16=cuda,
    )
