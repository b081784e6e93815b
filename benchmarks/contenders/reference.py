"""The reference recipe: every text padded to the length limit, one batch a task, both sides of every pair encoded.

The pre-trained network's own dropout is on, as `model.train()` leaves it; each task is encoded, differentiated and
added up by itself; AdamW then takes one step.
"""

from __future__ import annotations

import torch
from torch import nn

from contenders.ours import synchronize
from contenders.peer import Collator, Peer, rows_of
from contenders.work import Work


class Reference:
    """A plain loop over tasks.

    Args:
        work: What to train on; only its first step is taken, because each of its steps costs the same.
        peer: What is trained.
    """

    def __init__(self, work: Work, peer: Peer) -> None:
        self.work, self.peer = work, peer
        self.collate = Collator(peer.tokenizer, fixed=work.config.max_length)
        self.by_task = [rows_of({name: examples}, work.store) for name, examples in work.batches[0].items()]
        self.optimizer = torch.optim.AdamW(peer.trainable(), lr=work.config.learning_rate)

    def run(self) -> None:
        """One step."""
        device = self.work.device
        self.peer.train()
        for rows in self.by_task:
            batch = to_device(self.collate(rows), device)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
                loss = self.peer(**batch)["loss"] / len(self.by_task)
            loss.backward()
        nn.utils.clip_grad_norm_(self.peer.trainable(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        synchronize(device)


def to_device(value: dict, device: torch.device) -> dict:
    """Nested tensors of a batch on the device."""
    return {key: to_device(part, device) if isinstance(part, dict) else part.to(device) for key, part in value.items()}
