"""AdamW over the shared module and the heads, its schedule, and its state as safetensors.

`optim` says which AdamW: torch's, or one of bitsandbytes with moments in 8 bits (Dettmers et al. 2022, arXiv
2110.02861) or in memory that moves to the CPU while the GPU's is full (Dettmers et al. 2023, arXiv 2305.14314,
section 3).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from manyskills.config import TrainConfig
from manyskills.errors import UserError, require_extra
from manyskills.model.multitask import MultiTaskModel
from manyskills.training.schedule import rate_factor

_BITSANDBYTES = {
    "adamw_bnb_8bit": {"optim_bits": 8, "is_paged": False},
    "paged_adamw_32bit": {"optim_bits": 32, "is_paged": True},
    "paged_adamw_8bit": {"optim_bits": 8, "is_paged": True},
}
_SMALL, _BLOCK = 4096, 256
"""bitsandbytes keeps the moments of smaller parameters in float32; values of a moment that share a float32 scale."""

_SCALARS = "scalars"


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
        undecayed = [p for name, p in self._shared.items() if model.undecayed(name, p)]
        spared = {id(p) for p in undecayed}
        rate = config.learning_rate
        groups = [
            {"params": [p for p in self._shared.values() if id(p) not in spared], "base_lr": rate},
            {"params": undecayed, "base_lr": rate, "weight_decay": 0.0},
            {"params": [p for p in self._heads.values() if p.ndim > 1], "base_lr": heads_rate},
            # biases, scales and temperatures are not pulled to zero
            {"params": [p for p in self._heads.values() if p.ndim <= 1], "base_lr": heads_rate, "weight_decay": 0.0},
        ]
        self.adamw = _build([group for group in groups if group["params"]], config)

    def update(self, step: int) -> float:
        """Clip, update with the learning rate of this step (counted from 0) and clear the gradients.

        Returns:
            The shared module's learning rate.
        """
        if self.config.max_grad_norm:
            for parameters in (self._shared.values(), self._heads.values()):
                nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm)
        factor = rate_factor(step, self.total_steps, self.config)
        for group in self.adamw.param_groups:
            group["lr"] = group["base_lr"] * factor
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        return self.rate(step)

    def rate(self, step: int) -> float:
        """The shared module's learning rate at a step, counted from 0."""
        return self.config.learning_rate * rate_factor(step, self.total_steps, self.config)

    def save(self, path: Path) -> None:
        """Write all that is kept of every parameter that has been updated: moments, their scales, the step count."""
        tensors: dict[str, torch.Tensor] = {}
        scalars: dict[str, int | float] = {}
        for name, p in self._named():
            for key, value in self.adamw.state[p].items() if p in self.adamw.state else ():
                if isinstance(value, torch.Tensor):
                    tensors[f"{name}|{key}"] = value.detach().cpu().clone()
                else:
                    scalars[f"{name}|{key}"] = value
        save_file(tensors, path, metadata={_SCALARS: json.dumps(scalars)})

    def load(self, path: Path) -> None:
        """The inverse of `save`.

        Raises:
            UserError: The file is broken, or belongs to another model or another optimiser.
        """
        named, by_name = dict(self._named()), _read(path)
        hint = "resume with the configuration that the run was started with"
        for name, saved in by_name.items():
            if name not in named:
                raise UserError(f"{path} holds the state of {name!r}, which this model does not train", hint)
            state = self._fresh_state(named[name])
            if set(state) != set(saved):
                raise UserError(f"{path} was not written with optim={self.config.optim}", hint)
            for key, value in saved.items():
                if isinstance(value, torch.Tensor):
                    state[key].copy_(value)  # not replaced: bitsandbytes' own buffers are the ones that are paged
                else:
                    state[key] = value

    def _fresh_state(self, p: nn.Parameter) -> dict[str, Any]:
        """What the optimiser keeps of a parameter before its first update, entered into its state."""
        if isinstance(self.adamw, torch.optim.AdamW):
            moments = {key: torch.zeros_like(p, requires_grad=False) for key in ("exp_avg", "exp_avg_sq")}
            self.adamw.state[p] = {"step": torch.tensor(0.0), **moments}
        else:
            group, number, index = next(
                (group, number, index)
                for number, group in enumerate(self.adamw.param_groups)
                for index, other in enumerate(group["params"])
                if other is p
            )
            self.adamw.init_state(group, p, number, index)  # pyright: ignore[reportAttributeAccessIssue]
        return self.adamw.state[p]

    def _named(self) -> list[tuple[str, nn.Parameter]]:
        return [
            *((f"shared.{n}", p) for n, p in self._shared.items()),
            *((f"head.{n}", p) for n, p in self._heads.items()),
        ]


def require_optimizer(config: TrainConfig, device: torch.device) -> None:
    """Find out before anything is read whether the run's optimiser works here.

    Raises:
        UserError: It needs a GPU or bitsandbytes, and there is none.
    """
    if config.optim not in _BITSANDBYTES:
        return
    if device.type != "cuda":
        raise UserError(
            f"optim: {config.optim} needs a GPU, and this run is on the {device.type}", "set optim=adamw_torch"
        )
    require_extra("bitsandbytes", "quant")


def training_bytes(parameters: Iterable[nn.Parameter], optim: str) -> int:
    """Bytes of the gradients and of both moments; paged moments count, though they leave the GPU when it is full.

    Args:
        parameters: All that train, in float32.
        optim: As in the configuration.
    """
    bits = _BITSANDBYTES.get(optim, {}).get("optim_bits", 32)
    return sum(4 * p.numel() + 2 * _moment_bytes(p.numel(), bits) for p in parameters)


def _moment_bytes(values: int, bits: int) -> int:
    return 4 * values if bits == 32 or values < _SMALL else values + 4 * math.ceil(values / _BLOCK)


def _build(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    if config.optim not in _BITSANDBYTES:
        return torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay)
    adamw = require_extra("bitsandbytes", "quant").optim.AdamW
    kind = _BITSANDBYTES[config.optim]
    return adamw(groups, lr=config.learning_rate, weight_decay=config.weight_decay, min_8bit_size=_SMALL, **kind)


def _read(path: Path) -> dict[str, dict[str, torch.Tensor | int | float]]:
    """By the name of a parameter, what `Optimizer.save` wrote of it.

    Raises:
        UserError: The file is broken.
    """
    try:
        with safe_open(path, framework="pt") as file:
            scalars = json.loads((file.metadata() or {}).get(_SCALARS, "{}"))
            values = {key: file.get_tensor(key) for key in file.keys()} | scalars  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        hint = "restore the file from a copy, or start anew with --overwrite"
        raise UserError(f"{path} cannot be read: {error}", hint) from error
    by_name: dict[str, dict[str, torch.Tensor | int | float]] = {}
    for key, value in values.items():
        name, _, kind = key.rpartition("|")
        by_name.setdefault(name, {})[kind] = value
    return by_name
