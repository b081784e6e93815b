"""`db_mtl`: dual balancing of losses and gradients.

Shape legend: K tasks of the step, P parameters of the shared module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from manyskills.config import DbMtlConfig
from manyskills.training.balancing.arithmetic import FLOOR, by_task, values
from manyskills.training.balancing.base import Combined, Losses, Rule, State

_AVERAGE, _COUNT = "average.", "count."


class DbMtl(Rule):
    """Dual-balancing (Lin et al. 2023, arXiv 2308.12029, algorithm 1).

    On losses: log L_i, so that the scale of a loss does not matter. On gradients: a moving average of each task's,
    a_i <- beta_k a_i + (1 - beta_k) grad log L_i with beta_k = beta / k^decay in the task's k-th step, and then
    (max_j |a_j|) sum_i a_i / |a_i|, here divided by K so that its length compares with the other rules'. The average
    starts at the first gradient instead of at zero. Heads follow grad log L_i / K. The state holds one gradient of the
    shared module for each task.
    """

    on_gradients = True

    def __init__(self, tasks: Sequence[str], config: DbMtlConfig, seed: int) -> None:
        self._config = config
        self._averages: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}

    def combine(self, gradients_KP: torch.Tensor, losses: Losses) -> Combined:
        """Averages, brought to the length of the longest.

        The factors say what each gradient would count if it were the average.
        """
        reciprocals_K = 1 / np.maximum(values(losses), FLOOR)
        for name, gradient_P, reciprocal in zip(losses, gradients_KP, reciprocals_K.tolist(), strict=True):
            self._average(name, gradient_P * reciprocal)
        lengths_K = torch.stack([torch.linalg.vector_norm(self._averages[name]) for name in losses])
        scales_K = torch.where(lengths_K > 0, lengths_K.max() / lengths_K, 0.0) / len(losses)
        scales = dict(zip(losses, scales_K.tolist(), strict=True))
        combined_P = torch.zeros_like(gradients_KP[0])
        for name, scale in scales.items():
            combined_P.add_(self._averages[name], alpha=scale)
        factors_K = np.array(list(scales.values())) * reciprocals_K
        return Combined(combined_P, by_task(losses, factors_K), by_task(losses, reciprocals_K / len(losses)))

    def _average(self, name: str, gradient_P: torch.Tensor) -> None:
        self._counts[name] = count = self._counts.get(name, 0) + 1
        before_P = self._averages.get(name)
        if before_P is None:
            self._averages[name] = gradient_P
            return
        beta = self._config.beta / count**self._config.beta_decay
        self._averages[name] = torch.lerp(gradient_P, before_P.to(gradient_P), beta)

    def state(self) -> State:
        """The averages, in float32, and how many steps each has seen."""
        averages = {_AVERAGE + name: average_P.float().cpu().numpy() for name, average_P in self._averages.items()}
        return averages | {_COUNT + name: np.array(count) for name, count in self._counts.items()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """The inverse of `state`; the averages move to the gradients' device in the next step."""
        self._counts = {key.removeprefix(_COUNT): int(state[key]) for key in state if key.startswith(_COUNT)}
        self._averages = {name: torch.from_numpy(state[_AVERAGE + name].copy()) for name in self._counts}
