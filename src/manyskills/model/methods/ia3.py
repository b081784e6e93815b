"""IA3 from the peft library."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from manyskills.config import Ia3Config
from manyskills.model.backbones import Backbone
from manyskills.model.methods.base import Method, attach, matched


class Ia3(Method):
    """Keys, values and inner feed-forward activations times learnt vectors that start at one.

    Liu et al. 2022 (arXiv 2205.05638, section 3.3). Where one projection makes query, key and value (ModernBERT), the
    query is scaled as well.
    """

    mergeable = True
    undecayed = ("ia3_l",)
    formula = "d_out of keys and values + d_in of the feed-forward projection"

    def apply(self, backbone: Backbone, config: Ia3Config, tasks: Sequence[str]) -> nn.Module:
        """peft's IA3 on key and value projections and on the input of the feed-forward projection."""
        import peft
        from peft.tuners.ia3 import IA3Layer

        match = matched(backbone, config, ["key_value", "ffn_output"])
        inner = None if config.targets else matched(backbone, config, ["ffn_output"]).pattern
        return attach(backbone, peft.IA3Config(feedforward_modules=inner), match, IA3Layer)

    def where(self, config: Ia3Config) -> str:
        """On which activations."""
        return "keys, values and inner feed-forward activations"
