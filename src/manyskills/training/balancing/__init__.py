"""How the tasks' losses, or their gradients, become one update: one small class a rule, one file a class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from manyskills.config import (
    BalancingConfig,
    CagradConfig,
    CobaConfig,
    DbMtlConfig,
    DwaConfig,
    FamoConfig,
    FixedConfig,
    GlsConfig,
    GradnormConfig,
    LearnedSoftmaxConfig,
    MgdaConfig,
    NashMtlConfig,
    PcgradConfig,
    RlwConfig,
    Section,
    UncertaintyConfig,
    UniformConfig,
)
from manyskills.evaluation.conflict import COLLAPSE
from manyskills.training.balancing.base import (
    Combined,
    Floats,
    Losses,
    Needs,
    Rule,
    State,
    TaskLoss,
    equal,
    gram,
    shares,
)
from manyskills.training.balancing.cagrad import Cagrad
from manyskills.training.balancing.coba import Coba
from manyskills.training.balancing.constant import Fixed, Uniform
from manyskills.training.balancing.db_mtl import DbMtl
from manyskills.training.balancing.dwa import Dwa
from manyskills.training.balancing.famo import Famo
from manyskills.training.balancing.gls import Gls
from manyskills.training.balancing.gradnorm import Gradnorm
from manyskills.training.balancing.learned_softmax import LearnedSoftmax
from manyskills.training.balancing.mgda import Mgda
from manyskills.training.balancing.nash_mtl import NashMtl
from manyskills.training.balancing.pcgrad import Pcgrad
from manyskills.training.balancing.rlw import Rlw
from manyskills.training.balancing.uncertainty import Uncertainty

__all__ = [
    "COLLAPSE",
    "Combined",
    "Floats",
    "Losses",
    "Needs",
    "Rule",
    "State",
    "TaskLoss",
    "build_balancing",
    "collapsed",
    "equal",
    "gram",
    "shares",
]

_RULES: dict[type[Section], Callable[..., Rule]] = {
    UniformConfig: Uniform,
    FixedConfig: Fixed,
    LearnedSoftmaxConfig: LearnedSoftmax,
    UncertaintyConfig: Uncertainty,
    DwaConfig: Dwa,
    RlwConfig: Rlw,
    FamoConfig: Famo,
    CobaConfig: Coba,
    GlsConfig: Gls,
    PcgradConfig: Pcgrad,
    CagradConfig: Cagrad,
    MgdaConfig: Mgda,
    NashMtlConfig: NashMtl,
    DbMtlConfig: DbMtl,
    GradnormConfig: Gradnorm,
}


def build_balancing(config: BalancingConfig, tasks: Sequence[str], seed: int) -> Rule:
    """The rule of a configuration.

    Args:
        config: Name and settings.
        tasks: All tasks of the run; a rule keeps its state in their order.
        seed: Of the run, for rules that draw random numbers.
    """
    rule = _RULES[type(config)](tasks, config, seed)
    rule.raw_losses = config.losses == "raw"
    return rule


def collapsed(weights: Mapping[str, float]) -> list[str]:
    """Tasks whose effective weight, as `shares` gives it, is under 1 %."""
    return [name for name, weight in weights.items() if weight < COLLAPSE]
