"""One backbone with a shared module, and one head a task.

Shape legend: B sequences, T tokens, H hidden size, D size of a vector (= H), N texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from manyskills.config import BackboneConfig, MethodConfig, TaskConfig, TrainConfig
from manyskills.model.backbones import Architecture, Backbone, load_backbone
from manyskills.model.heads import BinaryHead, Head, build_head
from manyskills.model.methods import adapt
from manyskills.model.pooling import pool
from manyskills.tasks import get_task


class MultiTaskModel(nn.Module):
    """Texts to vectors through the shared module, vectors to answers through the heads.

    Args:
        backbone: The loaded backbone; its network is adapted in place.
        method: How it is adapted.
        tasks: The tasks and their choices; each gets a head.
    """

    def __init__(self, backbone: Backbone, method: MethodConfig, tasks: Mapping[str, TaskConfig]) -> None:
        super().__init__()
        self.tokenizer, self.template = backbone.tokenizer, backbone.template
        self.architecture: Architecture = backbone.architecture
        self.method, self.task_configs = method, dict(tasks)
        self.trunk_dropout = False
        self.autocast_dtype: torch.dtype | None = None
        self.backbone = adapt(backbone, method)
        size = self.architecture.hidden_size
        self.heads = nn.ModuleDict({name: build_head(get_task(name), size, task) for name, task in tasks.items()})

    def head(self, name: str) -> Head:
        """The head of a task."""
        head = self.heads[name]
        assert isinstance(head, Head)
        return head

    def encode(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """Vectors of right-padded sequences, float32, shape (B, D)."""
        with self._autocast():
            output = self.backbone(input_ids=ids_BT, attention_mask=mask_BT)
        return pool(output.last_hidden_state, mask_BT, self.architecture.pooling)

    def shared_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The trainable parameters that all tasks share."""
        return ((name, p) for name, p in self.backbone.named_parameters() if p.requires_grad)

    def head_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters of the heads."""
        return self.heads.named_parameters()

    @property
    def trains_backbone(self) -> bool:
        """Whether vectors change during training."""
        return any(True for _ in self.shared_parameters())

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.backbone.parameters()).device

    def train(self, mode: bool = True) -> MultiTaskModel:
        """Training mode for heads and for the method's own dropout; for the pre-trained network only on request.

        Dropout inside a frozen network costs speed (it leaves the fast attention kernels) and regularises nothing
        that could overfit.
        """
        super().train(mode)
        if mode and not self.trunk_dropout:
            self.backbone.eval()
            for name, module in self.backbone.named_modules():
                if "lora_dropout" in name:
                    module.train()
        return self

    def _autocast(self) -> AbstractContextManager[object]:
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast_dtype)


def build_model(config: TrainConfig, device: torch.device) -> MultiTaskModel:
    """The model of a configuration at step 0: the same configuration gives the same weights.

    Args:
        config: Backbone, method, tasks and seed.
        device: Where it will train.

    Raises:
        UserError: The backbone cannot be loaded or the method does not fit it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = MultiTaskModel(load_backbone(_stored_as(config), device=device), config.method, config.tasks)
    model.trunk_dropout = config.trunk_dropout
    bf16 = (
        device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        if config.bf16 == "auto"
        else config.bf16
    )
    model.autocast_dtype = torch.bfloat16 if bf16 else None
    return model.to(device)


def _stored_as(config: TrainConfig) -> BackboneConfig:
    """Weights that train are kept in float32: read in half precision they would start from rounded values."""
    if config.method.name == "full" and config.backbone.dtype == "auto":
        return config.backbone.model_copy(update={"dtype": "float32"})
    return config.backbone


def set_class_balance(model: MultiTaskModel, positive_rates: Mapping[str, float]) -> None:
    """Tell each classifying head the share of positive rows in its training data."""
    for name, rate in positive_rates.items():
        head = model.head(name)
        if isinstance(head, BinaryHead):
            head.set_balance(rate, model.task_configs[name])
