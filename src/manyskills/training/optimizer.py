"""AdamW over the shared module and the heads, its schedule, and its state as safetensors."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from manyskills.config import TrainConfig
from manyskills.errors import UserError
from manyskills.model.multitask import MultiTaskModel

_STATE_KEYS = ("step", "exp_avg", "exp_avg_sq")


class Optimizer:
    """AdamW with a learning rate that is a pure function of the step, so that resuming needs no scheduler state.

    Gradients are clipped for the shared module and for the heads apart: an excited head must not shrink the module's
    update.

    Args:
        model: Its trainable parameters.
        config: Learning rates, decay, schedule and clipping.
        total_steps: Length of the schedule.
    """

    def __init__(self, model: MultiTaskModel, config: TrainConfig, total_steps: int) -> None:
        self.config, self.total_steps = config, total_steps
        self._shared, self._heads = dict(model.shared_parameters()), dict(model.head_parameters())
        heads_rate = config.head_learning_rate or config.learning_rate
        groups = [
            {"params": list(self._shared.values()), "base_lr": config.learning_rate},
            {"params": [p for n, p in self._heads.items() if p.ndim > 1], "base_lr": heads_rate},
            # biases, scales and temperatures are not pulled to zero
            {"params": [p for n, p in self._heads.items() if p.ndim <= 1], "base_lr": heads_rate, "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        self.adamw = torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay)

    def update(self, step: int) -> float:
        """Clip, update with the learning rate of this step (counted from 0) and clear the gradients.

        Returns:
            The shared module's learning rate.
        """
        if self.config.max_grad_norm:
            for parameters in (self._shared.values(), self._heads.values()):
                nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm)
        factor = learning_rate_factor(step, self.total_steps, self.config)
        for group in self.adamw.param_groups:
            group["lr"] = group["base_lr"] * factor
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        return self.config.learning_rate * factor

    def save(self, path: Path) -> None:
        """Write both moments and the step count of every parameter that has been updated."""
        state = {
            f"{name}|{key}": self.adamw.state[p][key].detach().cpu().clone()
            for name, p in self._named()
            if p in self.adamw.state
            for key in _STATE_KEYS
        }
        save_file(state, path)

    def load(self, path: Path) -> None:
        """The inverse of `save`.

        Raises:
            UserError: The file belongs to another model.
        """
        named = dict(self._named())
        try:
            state = load_file(path)
        except (OSError, SafetensorError) as error:
            hint = "restore the file from a copy, or start anew with --overwrite"
            raise UserError(f"{path} cannot be read: {error}", hint) from error
        for key, tensor in state.items():
            name, _, kind = key.rpartition("|")
            if name not in named:
                hint = "resume with the configuration that the run was started with"
                raise UserError(f"{path} holds the state of {name!r}, which this model does not train", hint)
            p = named[name]
            place = torch.device("cpu") if kind == "step" else p.device
            self.adamw.state[p][kind] = tensor.to(place)

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        return [
            *((f"shared.{n}", p) for n, p in self._shared.items()),
            *((f"head.{n}", p) for n, p in self._heads.items()),
        ]


def learning_rate_factor(step: int, total_steps: int, config: TrainConfig) -> float:
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
