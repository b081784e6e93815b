"""AdamW over a whole network, its clipping and schedule, and its state as safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from manyskills.config.pretraining import PretrainConfig
from manyskills.errors import UserError
from manyskills.training.schedule import rate_factor

BETAS = (0.9, 0.95)
"""Usual for language models from scratch (Brown et al. 2020, arXiv 2005.14165, appendix B)."""


class Optimizer:
    """AdamW (fused: one pass over each parameter) with a learning rate that is a pure function of the step.

    Args:
        network: All its parameters train; biases and norms are not decayed.
        config: Learning rate, decay, schedule and clipping.
        total_steps: Length of the schedule.
    """

    def __init__(self, network: Any, config: PretrainConfig, total_steps: int) -> None:
        self.config, self.total_steps = config, total_steps
        self._named: dict[str, torch.nn.Parameter] = dict(network.named_parameters())
        groups = [
            {"params": [p for p in self._named.values() if p.ndim > 1]},
            {"params": [p for p in self._named.values() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        rate, decay = config.learning_rate, config.weight_decay
        self.adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=rate, betas=BETAS, weight_decay=decay, fused=True
        )

    def update(self, step: int, tokens: int) -> float:
        """Divide the gradient by the tokens of the step, clip it, update with the rate of this step and clear it.

        Args:
            step: Counted from 0.
            tokens: How many losses were added up.

        Returns:
            The gradient's norm before clipping.
        """
        gradients = [p.grad for p in self._named.values() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients)) / tokens
        most = self.config.max_grad_norm
        factor = min(most / (norm + 1e-6), 1.0) / tokens if most else 1.0 / tokens
        for gradient in gradients:
            gradient.mul_(factor)
        for group in self.adamw.param_groups:
            group["lr"] = self.rate(step)
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        return norm

    def rate(self, step: int) -> float:
        """The learning rate at a step, counted from 0."""
        return self.config.learning_rate * rate_factor(step, self.total_steps, self.config)

    def save(self, path: Path) -> None:
        """Write moments and step counts."""
        state = self.adamw.state
        tensors = {f"{name}|{key}": value for name, p in self._named.items() for key, value in state[p].items()}
        save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, path)

    def load(self, path: Path) -> None:
        """The inverse of `save`.

        Raises:
            UserError: The file is broken, or belongs to another network.
        """
        hint = "start anew with --overwrite"
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} cannot be read: {error}", hint) from error
        if {key.rpartition("|")[0] for key in tensors} != set(self._named):
            raise UserError(f"{path} belongs to another network", hint)
        for name, p in self._named.items():
            state = {key: tensors[f"{name}|{key}"].to(p.device) for key in ("step", "exp_avg", "exp_avg_sq")}
            self.adamw.state[p] = state
