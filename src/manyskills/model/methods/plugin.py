"""Enters tuners of ours into the peft library."""

from __future__ import annotations

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner


def register(peft_type: str, config: type[PeftConfig], tuner: type[BaseTuner], prefix: str) -> None:
    """Let peft make, save and load a tuner of ours.

    peft's own `register_peft_method` refuses names that are not in its enumeration, so its tables are filled directly.
    A plain string does as key: that is what stands in a saved `adapter_config.json`.

    Args:
        peft_type: What `config.peft_type` is.
        config: Its dataclass.
        tuner: Puts the layers into a network.
        prefix: What the names of all its parameters contain, and those of no other tuner.

    Raises:
        RuntimeError: The key or the prefix belongs to another tuner.
    """
    tables: tuple[dict, dict, dict] = (
        PEFT_TYPE_TO_CONFIG_MAPPING,
        PEFT_TYPE_TO_TUNER_MAPPING,
        PEFT_TYPE_TO_PREFIX_MAPPING,
    )
    configs, tuners, prefixes = tables
    if peft_type in tuners and tuners[peft_type].__module__ != tuner.__module__:
        raise RuntimeError(f"peft already has a method {peft_type}")
    if any(used == prefix for key, used in prefixes.items() if key != peft_type):
        raise RuntimeError(f"the prefix {prefix!r} of {peft_type} already belongs to another method of peft")
    configs[peft_type], tuners[peft_type], prefixes[peft_type] = config, tuner, prefix
