"""What a method is, and how those that are peft tuners are attached.

A method's numbers come with its configuration (`manyskills.config.methods`); here is what it does with them.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, cast

from torch import nn

from manyskills.config import MethodConfig, last_layers
from manyskills.errors import UserError
from manyskills.model.sites import Match, SiteKind, find_sites, find_targets

if TYPE_CHECKING:
    from manyskills.model.backbones import Backbone

ADAPTER_NAME = "default"


class Method(ABC):
    """How a backbone is adapted.

    Attributes:
        trains: Which weights of the shared module train, and so are saved: none, the backbone's own, or those of a peft
            adapter.
        equal_at_start: The adapted network answers as the backbone does until the first update.
        mergeable: The update can be added to the backbone's weights.
        routed: The vector of a text depends on the task that asks.
        undecayed: Parts of the names of parameters that weight decay leaves alone, such as scales that start at one.
        plug_in: It is a tuner of ours; peft alone cannot load what it saved.
        formula: Trainable parameters, for people. h hidden size, L layers, b bottleneck, r rank, p prefix length.
    """

    trains: Literal["nothing", "backbone", "adapter"] = "adapter"
    equal_at_start: bool = True
    mergeable: bool = False
    routed: bool = False
    undecayed: tuple[str, ...] = ()
    plug_in: bool = False
    formula: str

    @abstractmethod
    def apply(self, backbone: Backbone, config: Any, tasks: Sequence[str]) -> nn.Module:
        """The backbone's network with the method in it, and exactly the method's parameters trainable.

        Args:
            backbone: Its network is changed in place.
            config: The method's section of the configuration.
            tasks: Names of the tasks that share the module, in order.

        Raises:
            UserError: The method's sites are unknown or do not match the network.
        """

    @abstractmethod
    def where(self, config: Any) -> str:
        """Where it sits, for people."""

    def shared(self, config: Any) -> str:
        """Which of its parameters all tasks share, for people."""
        return "all of it"


def matched(backbone: Backbone, config: MethodConfig, kinds: Sequence[SiteKind]) -> Match:
    """The modules that a method changes: those of the table, or those that the configuration names.

    Raises:
        UserError: They are unknown, or not the same in each layer.
    """
    last, targets = last_layers(config), getattr(config, "targets", None)
    if targets:
        return find_targets(backbone.model, targets, last, backbone.architecture.layers)
    return find_sites(backbone.model, backbone.architecture.model_type, kinds, last)


def attach(backbone: Backbone, peft_config: Any, match: Match, layer_class: type) -> nn.Module:
    """A `peft.PeftModel` of the backbone, with the number of changed modules checked.

    Args:
        backbone: Its network is changed in place.
        peft_config: Its `target_modules` is set here.
        match: What is to be changed.
        layer_class: What a changed module becomes.
    """
    import peft

    from manyskills.model.backbones import hub_id

    peft_config.target_modules = match.pattern
    peft_config.base_model_name_or_path = hub_id(backbone.config.name)
    peft_config.revision = backbone.config.revision
    with warnings.catch_warnings(), _explained(type(peft_config).__name__):
        # peft asks transformers for a name that transformers is about to drop; neither is the user's business
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        model = peft.PeftModel(backbone.model, peft_config, adapter_name=ADAPTER_NAME)
    changed = [name for name, module in model.named_modules() if isinstance(module, layer_class)]
    wanted = sorted(f"base_model.model.{name}" for name in match.names)
    if sorted(changed) != wanted:
        raise RuntimeError(f"{type(peft_config).__name__} changed {len(changed)} modules, {len(wanted)} were meant")
    return model


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """A module that cannot carry the method was named by the user: the table's are tested."""
    try:
        yield
    except (ValueError, TypeError) as error:
        problem = f"method.targets: {str(error).splitlines()[0]}"
        raise UserError(problem, f"name modules of a kind that {what} can change, such as linear layers") from error


def train_own_dropout(model: nn.Module) -> None:
    """Put what belongs to adapters into training mode, and nothing of the network that they sit in.

    The changed module itself is marked too: peft's DoRA asks it whether to drop.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            cast("nn.Module", layer).training = True
            for name in (*layer.adapter_layer_names, *layer.other_param_names):
                if isinstance(part := getattr(layer, name, None), nn.Module):
                    part.train()
