"""Hugging Face's Trainer, unchanged: the model gives the loss, the data set gives rows in one of its orders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contenders.peer import Collator, Peer, Row, padded_size, rows_of
from contenders.reference import to_device
from contenders.trainers import common_arguments, timed
from contenders.work import Work, first_rows
from manyskills.data.text_set import Examples
from measuring import Cost


class Order(Enum):
    """In which order the Trainer takes the rows."""

    BY_TASK = "one task a batch"
    """Rows as they were drawn; one step is one batch of each task, so each step has just our rows."""
    GROUPED = "group_by_length"
    """Tasks mixed, in batches of like length, as in a long run: the rows of all drawn steps in transformers' order, of
    which the typical batches are measured (`grouped`)."""
    GROUPED_WHOLE = "group_by_length, one batch"
    """The same with a whole step's rows in each batch, nothing accumulated."""
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
        self.arguments = _arguments(work, order, folder)
        if order in (Order.GROUPED, Order.GROUPED_WHOLE):
            batches = len(work.batches) * self.arguments.gradient_accumulation_steps
            rows = grouped(_rows(work.drawn, work), self.arguments.per_device_train_batch_size, batches)
        else:
            rows = _rows(work.batches, work)
        self.trainer = _trainer(peer, self.arguments, rows)
        self.clock = timed(self.trainer, work.device)

    def run(self) -> Cost:
        """One epoch over the rows; what its steps cost."""
        self.trainer.train()
        return self.clock.cost

    def warm_up(self) -> None:
        """One step of another Trainer on two rows of each task."""
        other = _trainer(self.peer, self.arguments, _rows([first_rows(self.work.batches[0])], self.work))
        timed(other, self.work.device)  # keeps it quiet
        other.train()

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


MEGA_BATCH = 50
"""Batches within which transformers sorts by length in a long run."""


def grouped(rows: Sequence[Row], batch_size: int, batches: int) -> list[Row]:
    """Typical batches of `group_by_length`, one behind another.

    The rows are ordered and cut into batches as transformers does it; typical are the batches whose padded size is
    nearest the mean of all.

    Args:
        rows: Of many steps.
        batch_size: Rows of a batch.
        batches: How many are wanted.
    """
    from transformers.trainer_pt_utils import get_length_grouped_indices

    lengths = [len(row["input_ids"]) for row in rows]
    generator = torch.Generator().manual_seed(0)
    order = get_length_grouped_indices(lengths, batch_size, mega_batch_mult=MEGA_BATCH, generator=generator)
    cut = [[rows[n] for n in order[at : at + batch_size]] for at in range(0, len(order) - batch_size + 1, batch_size)]
    sizes = np.array([padded_size(batch) for batch in cut])
    nearest = np.argsort(np.abs(sizes - sizes.mean()), kind="stable")[:batches]
    return [row for number in np.sort(nearest) for row in cut[number]]


def _rows(batches: Sequence[Mapping[str, Examples]], work: Work) -> list[Row]:
    return [row for batch in batches for row in rows_of(batch, work.store)]


def _arguments(work: Work, order: Order, folder: Path) -> Any:
    from transformers import TrainingArguments

    whole = order is Order.GROUPED_WHOLE
    accumulated = len(work.batches[0])
    return TrainingArguments(
        **common_arguments(work, folder),
        per_device_train_batch_size=work.rows_a_task * (accumulated if whole else 1),
        gradient_accumulation_steps=1 if whole else accumulated,
        weight_decay=work.config.weight_decay,
        train_sampling_strategy="batch_rebalance" if order is Order.REBALANCED else "sequential",
        remove_unused_columns=False,
    )
