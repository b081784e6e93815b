"""How the tasks' losses, or their gradients, become one update, as configuration: `balancing: {name: cagrad, c: 0.5}`.

Formulas and sources are in `manyskills.training.balancing`, one file a rule.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from manyskills.config.section import Section

Losses = Annotated[
    Literal["scaled", "raw"],
    Field(description="scaled: each loss divided by its value at chance level; raw: as they are."),
]
WeightsRate = Annotated[PositiveFloat, Field(description="Learning rate of the weights.")]


class UniformConfig(Section):
    """Mean of the losses."""

    name: Literal["uniform"] = "uniform"
    losses: Losses = "scaled"


class FixedConfig(Section):
    """Weighted mean of the losses with weights from the configuration."""

    name: Literal["fixed"] = "fixed"
    losses: Losses = "scaled"
    weights: dict[str, NonNegativeFloat] = Field(description="Weight by task name; they are normalised to sum to 1.")


class LearnedSoftmaxConfig(Section):
    """Softmax of learnt logits over the losses (Akli et al. 2026). It collapses onto the easiest task: see docs."""

    name: Literal["learned_softmax"] = "learned_softmax"
    losses: Losses = "raw"
    learning_rate: WeightsRate = 1e-2


class UncertaintyConfig(Section):
    """Homoscedastic uncertainty, learnt: sum of exp(-s_i) L_i + s_i / 2 (Kendall et al. 2018)."""

    name: Literal["uncertainty"] = "uncertainty"
    losses: Losses = "scaled"
    learning_rate: WeightsRate = 1e-2


class DwaConfig(Section):
    """Dynamic weight average: a task whose loss falls slowly weighs more (Liu et al. 2019)."""

    name: Literal["dwa"] = "dwa"
    losses: Losses = "scaled"
    temperature: PositiveFloat = Field(default=2.0, description="Large is equal weights.")
    window: PositiveInt = Field(
        default=20, description="Steps over which losses are averaged; the paper averages over an epoch."
    )


class RlwConfig(Section):
    """Random loss weights: the softmax of normal numbers, new in every step (Lin et al. 2022)."""

    name: Literal["rlw"] = "rlw"
    losses: Losses = "scaled"


class FamoConfig(Section):
    """Fast adaptive multi-task optimisation: equal relative progress (Liu et al. 2023, algorithm 1)."""

    name: Literal["famo"] = "famo"
    losses: Losses = "scaled"
    learning_rate: WeightsRate = 2.5e-2
    weight_decay: NonNegativeFloat = Field(
        default=1e-3, description="Of the logits of the weights, as a part of Adam's gradient."
    )
    every: PositiveInt = Field(
        default=20,
        description="Steps between updates of the weights. Each costs one more forward pass of the step's texts; 1 is "
        "the paper's algorithm.",
    )


class CobaConfig(Section):
    """Convergence balancer: weights from the slopes of validation losses (Gong et al. 2024)."""

    name: Literal["coba"] = "coba"
    losses: Losses = "scaled"
    tau: PositiveFloat = Field(default=5.0, description="Temperature of the divergence factor.")
    history: Annotated[int, Field(ge=2)] = Field(default=10, description="Measurements that a slope is fitted to.")
    warmup: Annotated[int, Field(ge=2)] = Field(default=5, description="Measurements before weights change.")
    every: PositiveInt = Field(default=20, description="Steps between measurements of the validation losses.")
    rows: PositiveInt = Field(
        default=16, description="Validation rows of each task in a measurement, the same ones each time."
    )


class GlsConfig(Section):
    """Geometric loss: the geometric mean of the losses (Chennupati et al. 2019)."""

    name: Literal["gls"] = "gls"
    losses: Losses = "scaled"


class PcgradConfig(Section):
    """Projecting conflicting gradients onto each other's normal planes (Yu et al. 2020)."""

    name: Literal["pcgrad"] = "pcgrad"
    losses: Losses = "scaled"


class CagradConfig(Section):
    """Conflict-averse gradient: the best worst improvement near the mean gradient (Liu et al. 2021)."""

    name: Literal["cagrad"] = "cagrad"
    losses: Losses = "scaled"
    c: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.4, description="Radius around the mean gradient, in its lengths; 0 is the mean gradient."
    )


class MgdaConfig(Section):
    """Multiple gradient descent: the shortest vector in the gradients' convex hull (Desideri 2012)."""

    name: Literal["mgda"] = "mgda"
    losses: Losses = "scaled"


class NashMtlConfig(Section):
    """Nash bargaining between the tasks' gradients (Navon et al. 2022)."""

    name: Literal["nash_mtl"] = "nash_mtl"
    losses: Losses = "scaled"


class DbMtlConfig(Section):
    """Dual balancing: gradients of log losses, brought to the length of the longest (Lin et al. 2023)."""

    name: Literal["db_mtl"] = "db_mtl"
    losses: Losses = "scaled"
    beta: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.9, description="Share of the former steps in the moving average of each task's gradient."
    )
    beta_decay: NonNegativeFloat = Field(default=0.5, description="The share at step k is beta / k^beta_decay.")


class GradnormConfig(Section):
    """GradNorm: weights that bring gradient norms to a common, rate-dependent size (Chen et al. 2018)."""

    name: Literal["gradnorm"] = "gradnorm"
    losses: Losses = "scaled"
    alpha: NonNegativeFloat = Field(default=1.5, description="How strongly slow tasks are pulled up.")
    learning_rate: WeightsRate = 2.5e-2


ON_GRADIENTS = (PcgradConfig, CagradConfig, MgdaConfig, NashMtlConfig, DbMtlConfig, GradnormConfig)
"""Rules that see each task's gradient on the shared module."""

BalancingConfig = Annotated[
    UniformConfig
    | FixedConfig
    | LearnedSoftmaxConfig
    | UncertaintyConfig
    | DwaConfig
    | RlwConfig
    | FamoConfig
    | CobaConfig
    | GlsConfig
    | PcgradConfig
    | CagradConfig
    | MgdaConfig
    | NashMtlConfig
    | DbMtlConfig
    | GradnormConfig,
    Field(discriminator="name"),
]
