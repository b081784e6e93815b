"""Prefix tuning for every attention that goes through transformers' AttentionInterface, as a tuner of the peft library.

peft's own prefix tuning sends the prefix through `past_key_values`, which encoders without a cache do not read and
which shifts the positions of those that do.

Shape legend: B sequences, Q query positions, K key positions, P prefix length, H key heads, D head size, S hidden size,
M width of the projection.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig
from torch import nn

from manyskills.config import PrefixTuningConfig
from manyskills.errors import UserError
from manyskills.model.backbones import Backbone
from manyskills.model.methods.base import Method, attach, matched
from manyskills.model.methods.plugin import register
from manyskills.model.methods.prefix_attention import ATTENTION, PrefixedCall
from manyskills.model.methods.wrapping import WrappingLayer, WrappingTuner

PEFT_TYPE = "KEY_VALUE_PREFIX"
PREFIX = "prefix_"
START = 0.02
"""Standard deviation of what is learnt, at the start: that of the weights of most backbones."""


@dataclass
class PrefixPeftConfig(PeftConfig):
    """What `adapter_config.json` says of a prefix.

    Attributes:
        length: Learnt positions.
        projection: Width of the network that makes keys and values from a learnt matrix; None: they are learnt.
        target_modules: Names of the attention modules, or a regular expression.
    """

    length: int = 20
    projection: int | None = None
    target_modules: list[str] | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE  # pyright: ignore[reportAttributeAccessIssue]


class PrefixLayer(WrappingLayer):
    """An attention module with learnt keys and values in front of those of the text.

    The module gets a copy of the network's configuration that names our attention function; the network's own
    configuration, and with it the way its masks are made, stays as it is.

    Args:
        base_layer: The attention module.
        adapter_name: The first adapter's name.
        config: Its numbers.
    """

    adapter_layer_names = ("prefix_keys_values", "prefix_embedding", "prefix_hidden", "prefix_output")

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: PrefixPeftConfig) -> None:
        super().__init__(base_layer, adapter_name)
        self.network_config: Any = base_layer.config
        base_layer.config = copy.deepcopy(self.network_config)
        base_layer.config._attn_implementation = ATTENTION
        self.prefix_keys_values = nn.ParameterDict()
        self.prefix_embedding = nn.ParameterDict()
        self.prefix_hidden = nn.ModuleDict()
        self.prefix_output = nn.ModuleDict()
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: PrefixPeftConfig) -> None:
        """Add an adapter, on the device of the attention module."""
        device, dtype = self._get_base_layer_device_and_dtype(self.base_layer)
        heads, size = _key_heads(self.network_config)
        if config.projection is None:
            keys_values_2HPD = torch.empty(2, heads, config.length, size, device=device, dtype=dtype)
            self.prefix_keys_values[adapter_name] = nn.Parameter(keys_values_2HPD.normal_(std=START))
        else:
            hidden_size = self.network_config.hidden_size
            embedding_PS = torch.empty(config.length, hidden_size, device=device, dtype=dtype).normal_(std=START)
            self.prefix_embedding[adapter_name] = nn.Parameter(embedding_PS)
            self.prefix_hidden[adapter_name] = nn.Linear(hidden_size, config.projection, device=device, dtype=dtype)
            self.prefix_output[adapter_name] = nn.Linear(
                config.projection, 2 * heads * size, device=device, dtype=dtype
            )
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the attention module returns with the prefix in place.

        Raises:
            RuntimeError: The module computes its attention in a way of its own.
        """
        call = PrefixedCall(self.keys_values(), self.network_config._attn_implementation)
        out = self.base_layer(*args, prefixed_call=call, **kwargs)
        if not call.done:
            name = type(self.base_layer).__name__
            raise RuntimeError(f"{name} does not call its attention through transformers' AttentionInterface")
        return out

    def keys_values(self) -> torch.Tensor | None:
        """Keys and values of the adapters in use, shape (2, H, P, D); None without any."""
        prefixes_2HPD = [self._keys_values(name) for name in self.usable_adapters()]
        return torch.cat(prefixes_2HPD, dim=2) if prefixes_2HPD else None

    def _keys_values(self, name: str) -> torch.Tensor:
        if name in self.prefix_keys_values:
            return self.prefix_keys_values[name]
        embedding_PS = self.prefix_embedding[name]
        keys_values_PE = self.prefix_output[name](torch.tanh(self.prefix_hidden[name](embedding_PS)))
        heads, size = _key_heads(self.network_config)
        return keys_values_PE.view(-1, 2, heads, size).permute(1, 2, 0, 3)

    def unload(self) -> nn.Module:
        """The attention module with the network's configuration again."""
        self.base_layer.config = self.network_config
        return self.base_layer


class PrefixTuner(WrappingTuner):
    """Puts prefixes into a network."""

    prefix = PREFIX
    tuner_layer_cls = PrefixLayer

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, PrefixLayer):
            target.update_layer(adapter_name, peft_config)
            return
        if not hasattr(getattr(target, "config", None), "_attn_implementation"):
            raise UserError(
                f"prefix_tuning needs an attention module of transformers, {current_key} is a {type(target).__name__}",
                "name the modules that compute attention in method.targets",
            )
        self._replace_module(parent, target_name, PrefixLayer(target, adapter_name, peft_config), target)


class PrefixTuning(Method):
    """softmax(q [P_k; K]^T) [P_v; V] in each attention, P_k and P_v learnt: Li and Liang 2021 (arXiv 2101.00190).

    The prefix comes in front after the rotary embedding, so that no position of the text shifts, and every position
    sees all of it: padding, causal masks and sliding windows go on to hold between positions of the text.

    With `projection`, P_k and P_v of each layer are made by a tanh network of two layers from a learnt matrix of p rows
    (section 4.3, where one network serves all layers). What is saved is then that matrix and the network, not the keys
    and values that come out of it.
    """

    equal_at_start = False
    unpadded = False
    plug_in = True
    formula = "2 p h_kv an attention block; with projection m: p h + (h + 1) m + (m + 1) 2 h_kv"

    def apply(self, backbone: Backbone, config: PrefixTuningConfig, tasks: Sequence[str]) -> nn.Module:
        """A prefix in each attention module."""
        peft_config = PrefixPeftConfig(length=config.length, projection=config.projection)
        return attach(backbone, peft_config, matched(backbone, config, ["attention"]), PrefixLayer)

    def where(self, config: PrefixTuningConfig) -> str:
        """In front of which keys and values."""
        return f"{config.length} positions in front of each attention's keys and values"


def _key_heads(config: Any) -> tuple[int, int]:
    """Heads of keys and values, and the size of one, by the configuration of an attention module."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return heads, size


register(PEFT_TYPE, PrefixPeftConfig, PrefixTuner, PREFIX)
