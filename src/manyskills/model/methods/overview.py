"""What a method adds to a backbone, in numbers and in words."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from manyskills.config import MethodConfig
from manyskills.errors import UserError
from manyskills.model.backbones import Backbone
from manyskills.model.methods import METHODS, adapt
from manyskills.model.methods.base import placement
from manyskills.model.quantization import parameter_count


@dataclass(frozen=True, slots=True)
class MethodFacts:
    """One method on one backbone.

    Attributes:
        name: Of the method.
        trainable: Parameters of the shared module that train; heads are not among them.
        backbone: Parameters of the backbone as it was published.
        storage: Bytes of the trained weights on disk.
        changed: Modules of the network that the method changed.
        where: Where it sits, for people.
        shared: What the tasks share, for people.
        formula: Trainable parameters as a formula.
        equal_at_start: Whether it answers as the backbone does before the first update.
        mergeable: Whether it can be added to the backbone's weights.
    """

    name: str
    trainable: int
    backbone: int
    storage: int
    changed: int
    where: str
    shared: str
    formula: str
    equal_at_start: bool
    mergeable: bool

    @property
    def share(self) -> float:
        """Trainable parameters among all of the adapted network, as peft and the published tables count."""
        everything = self.backbone if self.trainable == self.backbone else self.backbone + self.trainable
        return self.trainable / everything

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"share": self.share}


def facts(network: nn.Module, config: MethodConfig, backbone_parameters: int) -> MethodFacts:
    """Count an adapted network.

    Args:
        network: What `adapt` made; may be on the meta device.
        config: The method.
        backbone_parameters: Of the network before it was adapted.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    method = METHODS[config.name]
    trainable = [p for p in network.parameters() if p.requires_grad]
    return MethodFacts(
        name=config.name,
        trainable=sum(p.numel() for p in trainable),
        backbone=backbone_parameters,
        storage=sum(p.numel() * p.element_size() for p in trainable),
        changed=sum(isinstance(module, BaseTunerLayer) for module in network.modules()),
        where=placement(config, method),
        shared=method.shared(config),
        formula=method.formula,
        equal_at_start=method.equal_at_start,
        mergeable=method.mergeable,
    )


def overview(
    backbone: Backbone, configs: Sequence[MethodConfig], tasks: Sequence[str]
) -> Iterator[MethodFacts | UserError]:
    """Facts of each method on the same backbone, or why it cannot be applied.

    Args:
        backbone: On the meta device; left as it is.
        configs: The methods.
        tasks: Names of the tasks that share the module.
    """
    size = parameter_count(backbone.model)
    for config in configs:
        try:
            network = adapt(replace(backbone, model=copy.deepcopy(backbone.model)), config, tasks)
        except UserError as error:
            yield error
        else:
            yield facts(network, config, size)
