"""MTL-LoRA: LoRA with parts that belong to a task, and each task's part as ordinary LoRA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from manyskills.config import MtlLoraConfig
from manyskills.errors import UserError, did_you_mean
from manyskills.model.backbones import Backbone
from manyskills.model.methods.base import Method, attach, matched
from manyskills.model.methods.mtl_lora_tuner import MtlLoraLinear, MtlLoraTunerConfig

if TYPE_CHECKING:
    import peft


class MtlLora(Method):
    """y + (lora_alpha / r) sum_i softmax(w_t / temperature)_i B_i L_t A x for a text of task t.

    Yang et al. 2024 (arXiv 2410.09437). The paper writes L_t as a transformation of the low-rank space; its authors'
    code has it full (r x r) or diagonal. Here it is diagonal: so are the published trainable shares.
    """

    routed = True
    plug_in = True
    undecayed = ("mtllora_diagonal", "mtllora_logits")
    formula = "(r (d_in + E d_out) + T (r + E)) a site; E matrices B, T tasks"

    def apply(self, backbone: Backbone, config: MtlLoraConfig, tasks: Sequence[str]) -> nn.Module:
        """Our tuner on query and value projections or on every linear layer."""
        match = matched(backbone, config, ["query_value" if config.target == "attention" else "linear"])
        peft_config = MtlLoraTunerConfig(
            r=config.r,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            experts=config.experts,
            temperature=config.temperature,
            tasks=list(tasks),
        )
        return attach(backbone, peft_config, match, MtlLoraLinear)

    def where(self, config: MtlLoraConfig) -> str:
        """On which linear layers."""
        sites = "query and value projections" if config.target == "attention" else "every linear layer"
        return f"on {sites}"

    def shared(self, config: MtlLoraConfig) -> str:
        """A and the pool."""
        return f"A and the {config.experts} matrices B; each task has a diagonal and a mixture of its own"


def as_lora(model: nn.Module, task: str) -> tuple[peft.LoraConfig, dict[str, torch.Tensor]]:
    """One task's part as ordinary LoRA of the same rank: A_t = L_t A and B_t = sum_i softmax(w_t / temperature)_i B_i.

    Args:
        model: A `peft.PeftModel` with an MTL-LoRA adapter that is active.
        task: One of its tasks.

    Returns:
        The configuration, and the weights under the names that peft saves them by: the two files of an adapter folder.

    Raises:
        UserError: The adapter is of another method, or does not know the task.
    """
    name, config = _active(model)
    if task not in config.tasks:
        raise UserError(f"the module was not trained on {task!r}", did_you_mean(task, config.tasks))
    index = config.tasks.index(task)
    state: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for place, layer in model.named_modules():
            if isinstance(layer, MtlLoraLinear):
                A_RI = layer.mtllora_diagonal[name][index][:, None] * layer.mtllora_A[name]
                state[f"{place}.lora_A.weight"] = A_RI.cpu()
                state[f"{place}.lora_B.weight"] = layer.mixed(name)[index].cpu().clone()
    return _lora_config(config), state


def _active(model: nn.Module) -> tuple[str, MtlLoraTunerConfig]:
    """Name and configuration of the adapter that answers."""
    import peft

    if isinstance(model, peft.PeftModel) and isinstance(name := model.active_adapter, str):
        config = model.peft_config[name]
        if isinstance(config, MtlLoraTunerConfig):
            return name, config
    raise UserError("the active adapter is not one of mtl_lora", "only mtl_lora has a part for each task")


def _lora_config(config: MtlLoraTunerConfig) -> peft.LoraConfig:
    import peft

    return peft.LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=config.target_modules,  # pyright: ignore[reportArgumentType] - a set is what peft makes of a list
        exclude_modules=config.exclude_modules,  # pyright: ignore[reportArgumentType]
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        revision=config.revision,
        inference_mode=True,
    )
