"""IA3 from the peft library."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from manyskills.config import Ia3Config
from manyskills.model.backbones import Backbone
from manyskills.model.methods.base import Method, attach, matched
from manyskills.model.sites import Match, linear_sizes

NOTHING = r"(?!)"
"""A regular expression that matches no name; without one, peft would look for feed-forward modules by itself."""


class Ia3(Method):
    """Keys, values and inner feed-forward activations times learnt vectors that start at one.

    Liu et al. 2022 (arXiv 2205.05638, section 3.3). Where one projection makes query, key and value (ModernBERT), the
    query is scaled as well. Of modules that the configuration names, those that lead from another size to the hidden
    size are taken for feed-forward projections, whose input is scaled; of the others the output is.
    """

    mergeable = True
    undecayed = ("ia3_l",)
    formula = "d_out of keys and values + d_in of the feed-forward projection"

    def apply(self, backbone: Backbone, config: Ia3Config, tasks: Sequence[str]) -> nn.Module:
        """peft's IA3 on key and value projections and on the input of the feed-forward projection."""
        import peft
        from peft.tuners.ia3 import IA3Layer

        match = matched(backbone, config, ["key_value", "ffn_output"])
        inner = _feed_forward(backbone, match) if config.targets else matched(backbone, config, ["ffn_output"]).pattern
        return attach(backbone, peft.IA3Config(feedforward_modules=inner), match, IA3Layer)

    def where(self, config: Ia3Config) -> str:
        """On which activations."""
        return "keys, values and inner feed-forward activations"


def _feed_forward(backbone: Backbone, match: Match) -> str:
    """A pattern of those of the modules that come from another size to the hidden size; never peft's own guess."""
    hidden = backbone.architecture.hidden_size
    names = [
        name
        for name in match.names
        if (sizes := linear_sizes(backbone.model.get_submodule(name))) and sizes[0] != hidden and sizes[1] == hidden
    ]
    return "|".join(re.escape(name) for name in names) or NOTHING
