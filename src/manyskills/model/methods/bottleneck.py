"""Bottleneck adapters, `serial_adapter` and `parallel_adapter`, as a tuner of the peft library.

Shape legend: x and y are the input and the output of a sublayer, any shape that ends in the hidden size.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import PeftConfig
from torch import nn
from torch.nn import functional

from manyskills.config import ParallelAdapterConfig, SerialAdapterConfig
from manyskills.errors import UserError
from manyskills.model.backbones import Backbone
from manyskills.model.methods.base import Method, attach, matched
from manyskills.model.methods.plugin import register
from manyskills.model.methods.wrapping import WrappingLayer, WrappingTuner
from manyskills.model.precision import autocasts
from manyskills.model.sites import SiteKind, linear_sizes

PEFT_TYPE = "BOTTLENECK_ADAPTER"
PREFIX = "bottleneck_"
ACTIVATIONS = {"relu": functional.relu, "gelu": functional.gelu, "silu": functional.silu, "tanh": torch.tanh}

Placement = Literal["serial", "parallel"]
_Config = SerialAdapterConfig | ParallelAdapterConfig


@dataclass
class BottleneckPeftConfig(PeftConfig):
    """What `adapter_config.json` says of a bottleneck adapter.

    Attributes:
        placement: serial, behind linear layers, or parallel, beside blocks.
        bottleneck: Width between the two projections.
        activation: Name of the function between them.
        dropout: Behind the activation.
        scale: The adapter's output is multiplied by it.
        target_modules: Names of the changed modules, or a regular expression.
    """

    placement: str = "serial"
    bottleneck: int = 64
    activation: str = "relu"
    dropout: float = 0.0
    scale: float = 1.0
    target_modules: list[str] | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE  # pyright: ignore[reportAttributeAccessIssue]


class BottleneckLayer(WrappingLayer):
    """A module with adapters: up(dropout(act(down(x)))), up starting at zero.

    Args:
        base_layer: What is wrapped.
        adapter_name: The first adapter's name.
        config: Its numbers.
        width: Hidden size.
    """

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    other_param_names = ("bottleneck_dropout", "bottleneck_config")

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: BottleneckPeftConfig, width: int) -> None:
        super().__init__(base_layer, adapter_name)
        self.bottleneck_width = width
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.bottleneck_dropout = nn.ModuleDict()
        self.bottleneck_config: dict[str, BottleneckPeftConfig] = {}
        self.bottleneck_position = _position(base_layer, config.placement)
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: BottleneckPeftConfig) -> None:
        """Add an adapter, on the device of the wrapped module."""
        device, dtype = self._get_base_layer_device_and_dtype(self.base_layer)
        width = self.bottleneck_width
        up = nn.Linear(config.bottleneck, width, device=device, dtype=dtype)
        nn.init.zeros_(up.weight)
        nn.init.zeros_(up.bias)
        self.bottleneck_down[adapter_name] = nn.Linear(width, config.bottleneck, device=device, dtype=dtype)
        self.bottleneck_up[adapter_name] = up
        self.bottleneck_dropout[adapter_name] = nn.Dropout(config.dropout)
        self.bottleneck_config[adapter_name] = config
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the wrapped module returns, with the adapters' outputs added."""
        if self.bottleneck_position == "output":
            y = self.base_layer(*args, **kwargs)
            return self._add_adapters(y, y)
        if self.bottleneck_position == "residual":
            hidden, residual = _hidden_and_residual(*args, **kwargs)
            return self.base_layer(hidden, self._add_adapters(residual, residual))
        x = args[0] if args else kwargs["hidden_states"]
        out = self.base_layer(*args, **kwargs)
        y = out[0] if isinstance(out, tuple) else out
        if y.shape != x.shape:
            found = f"method.targets: a {type(self.get_base_layer()).__name__} changes the size of its input"
            raise UserError(found, "a parallel adapter goes beside blocks that keep it")
        return (self._add_adapters(y, x), *out[1:]) if isinstance(out, tuple) else self._add_adapters(y, x)

    def _add_adapters(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """y + scale * adapter(x), for each adapter in use."""
        for name in self.usable_adapters():
            y = torch.add(y, self._adapter(x, name).to(y.dtype), alpha=self.bottleneck_config[name].scale)
        return y

    def _adapter(self, x: torch.Tensor, name: str) -> torch.Tensor:
        down = self.bottleneck_down[name]
        if not autocasts(x.device.type):  # which casts by itself; a second copy would be for nothing
            x = x.to(next(down.parameters()).dtype)
        inner = ACTIVATIONS[self.bottleneck_config[name].activation](down(x))
        return self.bottleneck_up[name](self.bottleneck_dropout[name](inner))


def _refuse_other_sizes(target: nn.Module, width: int, name: str) -> None:
    sizes = linear_sizes(target)
    if sizes is not None and sizes != (width, width):
        found = f"method.targets: {name} leads from size {sizes[0]} to {sizes[1]}"
        raise UserError(f"{found}, a parallel adapter from {width} to {width}", "name whole blocks of that size")


class BottleneckTuner(WrappingTuner):
    """Puts bottleneck adapters into a network."""

    prefix = PREFIX
    tuner_layer_cls = BottleneckLayer

    def _check_new_adapter_config(self, config: PeftConfig) -> None:
        super()._check_new_adapter_config(config)
        placements = {getattr(other, "placement", None) for other in self.peft_config.values()}
        if len(placements) > 1:
            raise UserError(
                "serial and parallel adapters cannot be in one network", "load them into networks of their own"
            )

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
        if isinstance(target, BottleneckLayer):
            target.update_layer(adapter_name, peft_config)
            return
        if peft_config.placement == "parallel":
            width = self.model.config.hidden_size
            _refuse_other_sizes(target, width, current_key)
        elif (width := getattr(target, "out_features", None)) is None:
            raise UserError(
                f"serial_adapter goes behind a linear layer, {current_key} is a {type(target).__name__}",
                "name linear layers in method.targets",
            )
        layer = BottleneckLayer(target, adapter_name, peft_config, width)
        self._replace_module(parent, target_name, layer, target)


class BottleneckAdapter(Method):
    """Small networks of two projections with a bottleneck between them, h -> b -> h, biases included.

    serial: y + up(act(down(y))) on a sublayer's output y, before the residual is added; Houlsby et al. 2019
    (arXiv 1902.00751, section 2.1). Ours starts with up at zero, so exactly at the backbone, where theirs starts near
    it, and the backbone's layer norms stay frozen.

    parallel: f(x) + s up(act(down(x))) beside a sublayer f with input x; He et al. 2022 (arXiv 2110.04366, section
    3.3, table 1). Where the network's module adds the residual itself (BERT), the adapter's output is added to the
    residual: the same sum.

    Args:
        placement: serial or parallel.
    """

    plug_in = True
    formula = "2 h b + b + h a site"

    def __init__(self, placement: Placement) -> None:
        self.placement: Placement = placement

    def apply(self, backbone: Backbone, config: _Config, tasks: Sequence[str]) -> nn.Module:
        """Adapters at the outputs of attention and feed-forward, or beside these blocks."""
        peft_config = BottleneckPeftConfig(
            placement=self.placement,
            bottleneck=config.bottleneck,
            activation=config.activation,
            dropout=config.dropout,
            scale=config.scale if isinstance(config, ParallelAdapterConfig) else 1.0,
        )
        return attach(backbone, peft_config, matched(backbone, config, self._kinds(config)), BottleneckLayer)

    def where(self, config: _Config) -> str:
        """Behind or beside which sublayers."""
        sublayers = {"both": "attention and feed-forward", "attention": "attention", "ffn": "feed-forward"}
        return f"{'behind' if self.placement == 'serial' else 'beside'} {sublayers[config.where]}"

    def _kinds(self, config: _Config) -> list[SiteKind]:
        serial = self.placement == "serial"
        attention: SiteKind = "attention_output" if serial else "attention_block"
        ffn: SiteKind = "ffn_output" if serial else "ffn_block"
        kinds: dict[str, list[SiteKind]] = {"both": [attention, ffn], "attention": [attention], "ffn": [ffn]}
        return kinds[config.where]


def _position(base_layer: nn.Module, placement: str) -> Literal["output", "input", "residual"]:
    """What an adapter reads: the module's output, its input, or the residual that the module adds to its output."""
    if placement == "serial":
        return "output"
    return "residual" if "input_tensor" in inspect.signature(base_layer.forward).parameters else "input"


def _hidden_and_residual(hidden_states: torch.Tensor, input_tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The arguments of an output block of BERT, however they were passed."""
    return hidden_states, input_tensor


register(PEFT_TYPE, BottleneckPeftConfig, BottleneckTuner, PREFIX)
