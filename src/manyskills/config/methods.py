"""How a backbone can be adapted, as configuration: `method: {name: serial_adapter, bottleneck: 64}`.

What each name does is in `manyskills.model.methods`, where formulas and sources are.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, model_validator

from manyskills.config.section import Section


def _layers(value: str) -> str:
    if not re.fullmatch(r"all|last [1-9]\d*", value):
        raise ValueError(f"wanted all, or last K with K from 1 (`last 2`), found {value!r}")
    return value


def _not_empty(value: list[str] | None) -> list[str] | None:
    if value == [] or (value and not all(value)):
        raise ValueError("wanted names of modules; leave the key out for the built-in table")
    return value


Layers = Annotated[
    str,
    AfterValidator(_layers),
    Field(description="all, or `last K`: only the top K layers change; the layers below run once for each text."),
]
Targets = Annotated[
    list[str] | None,
    AfterValidator(_not_empty),
    Field(description="Names of modules instead of the built-in table; for architectures that it does not know."),
]
Dropout = Annotated[float, Field(ge=0, lt=1)]
LinearSites = Annotated[
    Literal["attention", "all-linear"],
    Field(description="attention: query and value projections; all-linear: every linear layer."),
]
Rank = Annotated[PositiveInt, Field(description="Rank of the update.")]
Alpha = Annotated[PositiveInt, Field(description="Scale: the update is multiplied by lora_alpha / r.")]
LoraDropout = Annotated[Dropout, Field(description="Dropout on the input of the update.")]
Bottleneck = Annotated[PositiveInt, Field(description="Width inside the adapter.")]
Activation = Annotated[
    Literal["relu", "gelu", "silu", "tanh"], Field(description="Between the two projections of the adapter.")
]
AdapterDropout = Annotated[Dropout, Field(description="Dropout inside the adapter, after the activation.")]


class FrozenConfig(Section):
    """Only the heads train; every vector is computed once."""

    name: Literal["frozen"] = "frozen"


class FullConfig(Section):
    """Every weight trains."""

    name: Literal["full"] = "full"


class LoraConfig(Section):
    """Low-rank updates of linear layers (Hu et al. 2022, arXiv 2106.09685)."""

    name: Literal["lora"] = "lora"
    r: Rank = 16
    lora_alpha: Alpha = 32
    lora_dropout: LoraDropout = 0.05
    target: LinearSites = "attention"
    layers: Layers = "all"
    targets: Targets = None

    @model_validator(mode="before")
    @classmethod
    def _former_name(cls, value: Any) -> Any:
        """Modules that were trained with 0.1.0 say target_modules."""
        if isinstance(value, dict) and "target_modules" in value and "targets" not in value:
            return {"targets" if key == "target_modules" else key: kept for key, kept in value.items()}
        return value


class DoraConfig(Section):
    """LoRA on the direction of each weight, and a learnt length of it (Liu et al. 2024, arXiv 2402.09353)."""

    name: Literal["dora"] = "dora"
    r: Rank = 16
    lora_alpha: Alpha = 32
    lora_dropout: LoraDropout = 0.05
    target: LinearSites = "attention"
    layers: Layers = "all"
    targets: Targets = None


class QloraConfig(Section):
    """LoRA on a backbone that is kept in 4-bit NormalFloat (Dettmers et al. 2023, arXiv 2305.14314)."""

    name: Literal["qlora"] = "qlora"
    r: Rank = 16
    lora_alpha: Alpha = 32
    lora_dropout: LoraDropout = 0.05
    target: LinearSites = "all-linear"
    layers: Layers = "all"
    targets: Targets = None


class Ia3Config(Section):
    """Learnt scales on keys, values and the feed-forward activations (Liu et al. 2022, arXiv 2205.05638)."""

    name: Literal["ia3"] = "ia3"
    layers: Layers = "all"
    targets: Targets = None


class SerialAdapterConfig(Section):
    """A bottleneck behind the attention and the feed-forward projection (Houlsby et al. 2019, arXiv 1902.00751)."""

    name: Literal["serial_adapter"] = "serial_adapter"
    bottleneck: Bottleneck = 64
    activation: Activation = "relu"
    dropout: AdapterDropout = 0.0
    where: Literal["both", "attention", "ffn"] = Field(default="both", description="Which sublayers get an adapter.")
    layers: Layers = "all"
    targets: Targets = None


class ParallelAdapterConfig(Section):
    """A bottleneck beside the attention and the feed-forward block (He et al. 2022, arXiv 2110.04366).

    `where: ffn` with `scale: 4` is its authors' scaled parallel adapter.
    """

    name: Literal["parallel_adapter"] = "parallel_adapter"
    bottleneck: Bottleneck = 64
    activation: Activation = "relu"
    dropout: AdapterDropout = 0.0
    where: Literal["both", "attention", "ffn"] = Field(default="both", description="Which sublayers get an adapter.")
    scale: PositiveFloat = Field(default=1.0, description="The adapter's output is multiplied by it.")
    layers: Layers = "all"
    targets: Targets = None


class PrefixTuningConfig(Section):
    """Learnt keys and values in front of those of the text, in each attention (Li and Liang 2021, arXiv 2101.00190)."""

    name: Literal["prefix_tuning"] = "prefix_tuning"
    length: PositiveInt = Field(default=20, description="Learnt positions in front of each attention.")
    projection: PositiveInt | None = Field(
        default=None,
        description="Width of the network that makes the prefix (Li and Liang, section 4.3); none: the keys and values "
        "are learnt as they are.",
    )
    layers: Layers = "all"
    targets: Targets = None


class MtlLoraConfig(Section):
    """LoRA with a shared A, a diagonal of each task, and a pool of B that each task mixes (arXiv 2410.09437)."""

    name: Literal["mtl_lora"] = "mtl_lora"
    r: Rank = 16
    lora_alpha: Alpha = 32
    lora_dropout: LoraDropout = 0.05
    experts: PositiveInt = Field(default=3, description="Matrices B in the pool.")
    temperature: PositiveFloat = Field(
        default=0.5, description="Of the softmax that mixes the pool: low is sharp, high is even."
    )
    target: LinearSites = "attention"
    layers: Layers = "all"
    targets: Targets = None


MethodConfig = Annotated[
    FrozenConfig
    | FullConfig
    | LoraConfig
    | DoraConfig
    | QloraConfig
    | Ia3Config
    | SerialAdapterConfig
    | ParallelAdapterConfig
    | PrefixTuningConfig
    | MtlLoraConfig,
    Field(discriminator="name"),
]


def last_layers(method: MethodConfig) -> int | None:
    """K of `layers: last K`; None where every layer may change."""
    layers = getattr(method, "layers", "all")
    return None if layers == "all" else int(layers.removeprefix("last "))
