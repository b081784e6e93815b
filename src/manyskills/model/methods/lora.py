"""LoRA and its kin from the peft library: `lora`, `dora`, `qlora`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from manyskills.config import DoraConfig, LoraConfig, QloraConfig
from manyskills.model.backbones import Backbone
from manyskills.model.methods.base import Method, attach, matched

_Config = LoraConfig | DoraConfig | QloraConfig


class Lora(Method):
    """y + (lora_alpha / r) B A x on linear layers; B starts at zero (Hu et al. 2022, arXiv 2106.09685, section 4.1).

    Args:
        dora: Learn each weight row's length apart from its direction (Liu et al. 2024, arXiv 2402.09353, equation 5).
        mergeable: Whether adding the update to the weights gives the same network; not on 4-bit weights, which would be
            quantised again.
    """

    def __init__(self, *, dora: bool = False, mergeable: bool = True) -> None:
        self.dora = dora
        self.mergeable = mergeable
        self.formula = "(r (d_in + d_out) + d_out) a site" if dora else "r (d_in + d_out) a site"

    def apply(self, backbone: Backbone, config: _Config, tasks: Sequence[str]) -> nn.Module:
        """peft's LoRA on query and value projections or on every linear layer."""
        import peft
        from peft.tuners.lora import LoraLayer

        from manyskills.model.methods.fused_lora import use_fused_layers

        match = matched(backbone, config, ["query_value" if config.target == "attention" else "linear"])
        peft_config = peft.LoraConfig(
            r=config.r, lora_alpha=config.lora_alpha, lora_dropout=config.lora_dropout, use_dora=self.dora
        )
        if backbone.config.quantize is None:
            use_fused_layers(peft_config)
        return attach(backbone, peft_config, match, LoraLayer)

    def where(self, config: _Config) -> str:
        """On which linear layers."""
        sites = "query and value projections" if config.target == "attention" else "every linear layer"
        return f"on {sites}"
