"""Each task's gradient on the shared module, one flat row a task.

Shape legend: K tasks, P parameters of the shared module, all laid one behind another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from manyskills.training.balancing import gram
from manyskills.training.processes import Processes


class TaskGradients:
    """Filled chunk by chunk.

    Args:
        tasks: Names, in the order of the rows.
        parameters: Of the shared module.
    """

    def __init__(self, tasks: Sequence[str], parameters: Sequence[nn.Parameter]) -> None:
        self.tasks, self.parameters = tuple(tasks), list(parameters)
        self._sizes = [p.numel() for p in self.parameters]
        self.values_KP = torch.zeros(len(self.tasks), sum(self._sizes), device=self.parameters[0].device)
        self._used = [False] * len(self.parameters)

    def add(self, task: int, output: torch.Tensor, gradient: torch.Tensor, *, keep_graph: bool) -> None:
        """Send the gradient of one task's loss with respect to an output back to the parameters.

        Args:
            task: Number of the row.
            output: With a graph.
            gradient: Of the loss with respect to it.
            keep_graph: For another task's turn with the same output.
        """
        found = torch.autograd.grad(output, self.parameters, gradient, retain_graph=keep_graph, allow_unused=True)
        for number, (row, part) in enumerate(zip(self.values_KP[task].split(self._sizes), found, strict=True)):
            if part is not None:
                row.add_(part.flatten())
                self._used[number] = True

    def add_direct(self, task: int, parameter: torch.Tensor, gradient: torch.Tensor) -> None:
        """Add what a task's loss itself sends to a parameter, not by way of an output.

        Args:
            task: Number of the row.
            parameter: One of those given.
            gradient: Of the task's loss with respect to it.
        """
        number = next(n for n, p in enumerate(self.parameters) if p is parameter)
        self.values_KP[task].split(self._sizes)[number].add_(gradient.flatten())
        self._used[number] = True

    def row(self, name: str) -> int:
        """Number of a task's row."""
        return self.tasks.index(name)

    def sum_over(self, processes: Processes) -> None:
        """Sum over all processes, each of which has sent back its share of the chunks."""
        processes.sum(self.values_KP)
        if processes.count > 1:
            self._used = processes.sum(torch.tensor(self._used, dtype=torch.float32)).bool().tolist()

    def weighted(self, factors: Mapping[str, float]) -> torch.Tensor:
        """sum_i factor_i g_i, shape (P,)."""
        weights_K = [factors[name] for name in self.tasks]
        return torch.tensor(weights_K, dtype=self.values_KP.dtype, device=self.values_KP.device) @ self.values_KP

    def assign(self, gradient_P: torch.Tensor) -> None:
        """Leave a gradient in the parameters. One that no task reached keeps none: AdamW would decay it."""
        parts = gradient_P.split(self._sizes)
        for p, part, used in zip(self.parameters, parts, self._used, strict=True):
            p.grad = part.view_as(p) if used else None

    def norms(self) -> dict[str, float]:
        """Length of each task's gradient."""
        return dict(zip(self.tasks, self.values_KP.norm(dim=1).tolist(), strict=True))

    def cosines(self) -> dict[str, dict[str, float]]:
        """Cosine of each pair of tasks, under the name of the first; a gradient of length 0 has 0 with all."""
        products_KK = gram(self.values_KP)
        lengths_K = np.sqrt(np.diag(products_KK))
        scales_KK = np.outer(lengths_K, lengths_K)
        cosines_KK = np.clip(products_KK / np.where(scales_KK > 0, scales_KK, 1.0), -1, 1).tolist()
        return {
            name: {other: cosines_KK[i][j] for j, other in enumerate(self.tasks) if j > i}
            for i, name in enumerate(self.tasks[:-1])
        }
