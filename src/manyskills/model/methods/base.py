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
from manyskills.model.sites import Match, SiteKind, find_sites, find_targets, linear_sizes

if TYPE_CHECKING:
    from manyskills.model.backbones import Backbone

ADAPTER_NAME = "default"


class Method(ABC):
    """How a backbone is adapted.

    Attributes:
        trains: Which weights of the shared module train, and so are saved: none, the backbone's own, or those of a peft
            adapter.
        equal_at_start: The adapted network answers as the backbone does until the first update.
        mergeable: The trained network is one of the backbone's kind, once an update is added to the weights.
        routed: The vector of a text depends on the task that asks.
        unpadded: It works on sequences one behind another as well.
        undecayed: Parts of the names of parameters that weight decay leaves alone, such as scales that start at one.
        plug_in: It is a tuner of ours; peft alone cannot load what it saved.
        formula: Trainable parameters, for people. h hidden size, L layers, b bottleneck, r rank, p prefix length.
    """

    trains: Literal["nothing", "backbone", "adapter"] = "adapter"
    equal_at_start: bool = True
    mergeable: bool = False
    routed: bool = False
    unpadded: bool = True
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
    if not targets:
        return find_sites(backbone.model, backbone.architecture.model_type, kinds, last)
    match = find_targets(backbone.model, targets, last)
    if _LINEAR_KINDS.issuperset(kinds):
        _refuse_what_is_not_linear(backbone.model, match, config.name)
    return match


_LINEAR_KINDS: set[SiteKind] = {"query_value", "linear", "key_value", "attention_output", "ffn_output"}


def _refuse_what_is_not_linear(model: nn.Module, match: Match, method: str) -> None:
    for name in match.names:
        module = model.get_submodule(name)
        if linear_sizes(module) is None:
            found = f"method.targets: {name} is a {type(module).__name__}"
            raise UserError(f"{found}, {method} wanted a linear layer", "name the linear layers inside it")


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
    with warnings.catch_warnings(), _explained():
        # peft asks transformers for a name that transformers is about to drop; neither is the user's business
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        model = peft.PeftModel(backbone.model, peft_config, adapter_name=ADAPTER_NAME)
    changed = [name for name, module in model.named_modules() if isinstance(module, layer_class)]
    wanted = sorted(f"base_model.model.{name}" for name in match.names)
    if sorted(changed) != wanted:
        raise RuntimeError(f"{type(peft_config).__name__} changed {len(changed)} modules, {len(wanted)} were meant")
    return model


def placement(config: MethodConfig, method: Method) -> str:
    """Where a method sits with this configuration, for people."""
    targets, last = getattr(config, "targets", None), last_layers(config)
    where = f"on the modules named {', '.join(targets)}" if targets else method.where(config)
    return where if last is None else f"{where}, in the last {last} layers"


@contextmanager
def _explained() -> Iterator[None]:
    """A module that cannot carry the method was named by the user: the table's are tested."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise UserError(f"method.targets: {str(error).splitlines()[0]}", "name other modules") from error


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
