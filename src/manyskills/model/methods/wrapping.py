"""What our tuners have in common that wrap a module of the network and cannot be merged into its weights."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

from manyskills.errors import UserError


class WrappingLayer(nn.Module, BaseTunerLayer):
    """A module of the network with something of ours around it; what is not ours is read from the module.

    Args:
        base_layer: The module of the network.
        adapter_name: The first adapter's name.
    """

    def __init__(self, base_layer: nn.Module, adapter_name: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.merged_adapters = []
        self._disable_adapters = False
        self._active_adapter = adapter_name

    def usable_adapters(self) -> list[str]:
        """Names of the adapters to apply: active, not disabled, and present here (another may cover fewer layers)."""
        if self.disable_adapters:
            return []
        present = self._get_available_adapters()
        return [name for name in self.active_adapters if name in present]

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> NoReturn:
        """Refuse.

        Raises:
            UserError: Always.
        """
        refuse_merging()

    def unload(self) -> nn.Module:
        """The module of the network as it was before it was wrapped."""
        return self.get_base_layer()

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device, torch.dtype]:
        """Where an adapter is made, and in which format: a block has no weight of its own, a 4-bit one is no float."""
        parameters = list(base_layer.parameters())
        dtype = next((p.dtype for p in parameters if p.is_floating_point()), torch.float32)
        return parameters[0].device, dtype

    def __getattr__(self, name: str) -> Any:
        # names with two underscores (__deepcopy__ and the like) are asked of the wrapper itself
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer" or name.startswith("__"):
                raise
            return getattr(self.base_layer, name)


class WrappingTuner(BaseTuner):
    """Replaces modules by wrapping layers; which ones is always said in `target_modules`."""

    target_module_mapping = {}  # noqa: RUF012  (so declared by peft)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # peft's own moves weights around, and expects that every module has one
        setattr(parent, child_name, child.unload() if isinstance(child, WrappingLayer) else new_module)

    def _check_merge_allowed(self) -> NoReturn:
        refuse_merging()


def refuse_merging() -> NoReturn:
    """Say that it cannot be merged.

    Raises:
        UserError: Always.
    """
    raise UserError(
        "adapters of this method are not linear: they cannot be merged into the backbone's weights",
        "keep the adapter folder beside the backbone; lora, dora, ia3 and full can be merged",
    )
