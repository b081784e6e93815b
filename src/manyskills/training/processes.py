"""The processes of one run: one, or several under `accelerate launch` or torchrun.

Each process encodes a share of a step's chunks; the vectors are summed (a vector is zero where it was not encoded), so
every process computes the same losses on all of them, in-batch negatives included; then the gradients of the shared
module are summed. The result is the single-process step, not an approximation of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among all."""

    rank: int
    count: int
    device: torch.device

    @classmethod
    def current(cls) -> Processes:
        """From the environment that a launcher sets; the device is the accelerator's if there is one.

        Accelerate joins processes that have no accelerator only if it is told that they shall use the CPU; else each
        would be a run of its own, and all of them would write the same folder.
        """
        from accelerate import PartialState
        from accelerate.utils import parse_flag_from_env

        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or (several and not torch.accelerator.is_available())
        state = PartialState(cpu=cpu)
        return cls(state.process_index, state.num_processes, torch.device(state.device or "cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    @property
    def share(self) -> tuple[int, int]:
        """(rank, processes), for dividing chunks."""
        return self.rank, self.count

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, in place."""
        if self.count > 1:
            held = tensor.to(self.device)
            dist.all_reduce(held)
            tensor.copy_(held)
        return tensor

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients over all processes in one message; what only some processes lack counts as zero there."""
        if self.count == 1:
            return
        everything = list(parameters)
        device = everything[0].device
        used = torch.tensor([p.grad is not None for p in everything], dtype=torch.float32, device=device)
        dist.all_reduce(used)  # what no process has a gradient for keeps none: AdamW would decay it
        present = [p for p, uses in zip(everything, used.tolist(), strict=True) if uses]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in present])
        dist.all_reduce(flat)
        for p, gradient in zip(present, flat.split([p.numel() for p in present]), strict=True):
            p.grad = gradient.view_as(p)

    def agree(self, value: Any) -> Any:
        """The main process's value, in every process.

        Args:
            value: JSON-ready.
        """
        return value if self.count == 1 else self._told(value, 0)

    def join(self, parts: list[list[str]]) -> list[list[str]]:
        """Each item from the process that has it; the others' is empty.

        Args:
            parts: As many items in every process.
        """
        if self.count == 1:
            return parts
        everyone = [self._told(parts, rank) for rank in range(self.count)]
        return [next((item for item in items if item), []) for items in zip(*everyone, strict=True)]

    def _told(self, value: Any, rank: int) -> Any:
        """That process's value, in every process."""
        mine = self.rank == rank
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(self.device)
        size = torch.tensor([len(data)], device=self.device)
        dist.broadcast(size, src=rank)
        held = data if mine else torch.empty(int(size), dtype=torch.uint8, device=self.device)
        dist.broadcast(held, src=rank)
        return json.loads(bytes(held.cpu().tolist()).decode())

    def copy_from_main(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give these the main process's values."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor.data, src=0)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            dist.barrier()
