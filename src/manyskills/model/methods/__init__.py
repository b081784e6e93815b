"""How a backbone is adapted: one table of methods, one file for each kind.

Importing this enters the methods that the peft library lacks into it, so that `peft.PeftModel.from_pretrained` can load
what they saved.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from manyskills.config import MethodConfig
from manyskills.model.backbones import Backbone
from manyskills.model.methods.base import ADAPTER_NAME, Method, train_own_dropout
from manyskills.model.methods.bottleneck import BottleneckAdapter
from manyskills.model.methods.ia3 import Ia3
from manyskills.model.methods.lora import Lora
from manyskills.model.methods.mtl_lora import MtlLora
from manyskills.model.methods.plain import Frozen, Full
from manyskills.model.methods.prefix_tuning import PrefixTuning

__all__ = ["ADAPTER_NAME", "METHODS", "Method", "adapt", "train_own_dropout"]

METHODS: dict[str, Method] = {
    "frozen": Frozen(),
    "full": Full(),
    "lora": Lora(),
    "dora": Lora(dora=True),
    "qlora": Lora(mergeable=False),
    "ia3": Ia3(),
    "serial_adapter": BottleneckAdapter("serial"),
    "parallel_adapter": BottleneckAdapter("parallel"),
    "prefix_tuning": PrefixTuning(),
    "mtl_lora": MtlLora(),
}


def adapt(backbone: Backbone, config: MethodConfig, tasks: Sequence[str]) -> nn.Module:
    """The backbone with a method applied and exactly the method's parameters trainable.

    Args:
        backbone: Its network is changed in place.
        config: Which method, with its numbers.
        tasks: Names of the tasks that share the module, in order.

    Raises:
        UserError: The method's sites are unknown or do not match the network.
    """
    return METHODS[config.name].apply(backbone, config, tasks)
