"""How a backbone is adapted: frozen, full or LoRA, applied and checked."""

from __future__ import annotations

import warnings

from torch import nn

from manyskills.config import FrozenConfig, FullConfig, LoraConfig
from manyskills.model.backbones import Backbone, hub_id
from manyskills.model.sites import matching_modules, target_pattern

ADAPTER_NAME = "default"


def adapt(backbone: Backbone, method: FrozenConfig | FullConfig | LoraConfig) -> nn.Module:
    """The backbone with the method applied and exactly the method's parameters trainable.

    Raises:
        UserError: The method's sites are unknown or do not match the network.
    """
    match method:
        case FrozenConfig():
            return backbone.model.requires_grad_(False)
        case FullConfig():
            return backbone.model.float().requires_grad_(True)
        case LoraConfig():
            return _with_lora(backbone, method)


def _with_lora(backbone: Backbone, method: LoraConfig) -> nn.Module:
    """LoRA by peft, with the targets always spelled out and the number of changed modules checked."""
    import peft
    from peft.tuners.lora import LoraLayer

    targets = method.target_modules or target_pattern(backbone.architecture.model_type, method.target)
    meant = matching_modules(backbone.model, targets, backbone.architecture.layers)
    config = peft.LoraConfig(
        r=method.r,
        lora_alpha=method.lora_alpha,
        lora_dropout=method.lora_dropout,
        target_modules=targets,
        base_model_name_or_path=hub_id(backbone.config.name),
        revision=backbone.config.revision,
    )
    with warnings.catch_warnings():
        # peft asks transformers for a name that transformers is about to drop; neither is the user's business
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        model = peft.PeftModel(backbone.model, config, adapter_name=ADAPTER_NAME)
    changed = sum(isinstance(module, LoraLayer) for module in model.modules())
    if changed != len(meant):
        raise RuntimeError(f"LoRA changed {changed} modules where {len(meant)} were meant")
    return model
