"""The two methods that add nothing to the network: `frozen` and `full`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from manyskills.config import FrozenConfig, FullConfig
from manyskills.model.backbones import Backbone
from manyskills.model.methods.base import Method


class Frozen(Method):
    """Heads on the backbone as it was published: the vectors never change, so each is computed once."""

    trains = "nothing"
    mergeable = True
    formula = "0"

    def apply(self, backbone: Backbone, config: FrozenConfig, tasks: Sequence[str]) -> nn.Module:
        """Nothing of the backbone trains."""
        return backbone.model.requires_grad_(False)

    def where(self, config: FrozenConfig) -> str:
        """Nowhere."""
        return "heads only"

    def shared(self, config: FrozenConfig) -> str:
        """The published backbone."""
        return "the frozen backbone"


class Full(Method):
    """Full fine-tuning, in float32: in half precision small updates are lost."""

    trains = "backbone"
    mergeable = True
    formula = "every weight"

    def apply(self, backbone: Backbone, config: FullConfig, tasks: Sequence[str]) -> nn.Module:
        """Everything trains."""
        return backbone.model.float().requires_grad_(True)

    def where(self, config: FullConfig) -> str:
        """Everywhere."""
        return "every weight of the backbone"
