"""MTL-LoRA as a tuner of the peft library: its configuration, its layer, and what puts the layer into a network.

Shape legend: B sequences, S tasks, E matrices in the pool, R rank, I and O sizes of the layer's input and output.

A batch may mix tasks. Which task reads which sequence is state that all layers of a tuner look at, never a hook:
gradient checkpointing runs layers again in the backward pass, when a hook is gone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn
from torch.nn import functional

from manyskills.errors import UserError
from manyskills.model.methods.plugin import register

PEFT_TYPE = "MTL_LORA"


@dataclass
class MtlLoraTunerConfig(PeftConfig):
    """What is saved as adapter_config.json.

    Attributes:
        r: Rank.
        lora_alpha: The update is multiplied by lora_alpha / r.
        lora_dropout: Dropout on the input of the update.
        experts: Matrices B in the pool.
        temperature: Of the softmax that mixes the pool.
        tasks: Names of the tasks; a task's place is its route.
        target_modules: Linear layers, as for peft's LoRA: endings of names, or a regular expression of full names.
        exclude_modules: Those of them that stay as they are.
    """

    r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    experts: int = 3
    temperature: float = 0.5
    tasks: list[str] = field(default_factory=list)
    target_modules: list[str] | set[str] | str | None = None
    exclude_modules: list[str] | set[str] | str | None = None

    def __post_init__(self) -> None:
        """Check the tasks: their number and order give the parameters their meaning."""
        super().__post_init__()
        self.peft_type = PEFT_TYPE  # pyright: ignore[reportAttributeAccessIssue]
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks: wanted the names of one task or more, each once, found {self.tasks}")
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)


class Routes:
    """Which task reads each sequence of the batch, or each token of sequences that lie one behind another; one object
    for all layers of a tuner."""

    def __init__(self) -> None:
        self.tasks: torch.Tensor | None = None

    def of(self, x: torch.Tensor, tasks: list[str]) -> torch.Tensor | None:
        """Indices of tasks, one for each row of a layer's input or one for each of its tokens; None where there is only
        one task.

        Raises:
            RuntimeError: They were not set, or for another batch.
        """
        if self.tasks is None:
            if len(tasks) == 1:
                return None
            raise RuntimeError(f"set the route of each sequence first: this adapter holds {', '.join(tasks)}")
        if self.tasks.shape not in (x.shape[:1], x.shape[:-1]):
            found = f"a layer's input is of shape {tuple(x.shape)}, the routes are of shape {tuple(self.tasks.shape)}"
            raise RuntimeError(f"{found}: set them for each batch; the first axis must be the batch")
        return self.tasks


class MtlLoraLinear(nn.Module, BaseTunerLayer):
    """A linear layer (plain or quantised) with W x + (lora_alpha / r) sum_i softmax(w_t / temperature)_i B_i L_t A x.

    Yang et al. 2024 (arXiv 2410.09437). A and the B_i are shared; task t has the diagonal L_t and the logits w_t. B
    starts at zero, so the layer starts as it was, and L_t at one. The logits start at random, as the authors' do: with
    equal logits all B_i would get the same gradient, stay equal for ever, and be a pool of one.

    Args:
        base_layer: What is adapted.
        routes: Of the tuner.
        adapter_name: The first adapter.
        config: Of this adapter.
    """

    adapter_layer_names = ("mtllora_A", "mtllora_B", "mtllora_diagonal", "mtllora_logits")
    other_param_names = ("mtllora_dropout", "mtllora_config")

    def __init__(self, base_layer: nn.Module, routes: Routes, adapter_name: str, config: MtlLoraTunerConfig) -> None:
        super().__init__()
        self.base_layer, self.routes = base_layer, routes
        self.in_features, self.out_features = _sizes(self.get_base_layer())
        self.mtllora_A = nn.ParameterDict()
        self.mtllora_B = nn.ParameterDict()
        self.mtllora_diagonal = nn.ParameterDict()
        self.mtllora_logits = nn.ParameterDict()
        self.mtllora_dropout = nn.ModuleDict()
        self.mtllora_config: dict[str, MtlLoraTunerConfig] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: MtlLoraTunerConfig) -> None:
        """Add an adapter."""
        tasks, experts, r = len(config.tasks), config.experts, config.r
        A_RI, logits_SE = torch.empty(r, self.in_features), torch.empty(tasks, experts)
        nn.init.kaiming_uniform_(A_RI, a=math.sqrt(5))
        nn.init.uniform_(logits_SE, -1 / math.sqrt(experts), 1 / math.sqrt(experts))
        self.mtllora_A[adapter_name] = nn.Parameter(A_RI)
        self.mtllora_B[adapter_name] = nn.Parameter(torch.zeros(experts, self.out_features, r))
        self.mtllora_diagonal[adapter_name] = nn.Parameter(torch.ones(tasks, r))
        self.mtllora_logits[adapter_name] = nn.Parameter(logits_SE)
        self.mtllora_dropout[adapter_name] = nn.Dropout(config.lora_dropout)
        self.mtllora_config[adapter_name] = config
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def mixed(self, adapter_name: str) -> torch.Tensor:
        """Each task's mixture of the pool, shape (S, O, R)."""
        weights_SE = (self.mtllora_logits[adapter_name] / self.mtllora_config[adapter_name].temperature).softmax(1)
        return torch.einsum("se,eor->sor", weights_SE, self.mtllora_B[adapter_name])

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The base layer's value and the updates of the active adapters."""
        y = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return y
        for name in self.active_adapters:
            if name in self.mtllora_config:
                y = y + self._update(x, name).to(y.dtype)
        return y

    def _update(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """The update of an input whose first axis is the batch, or of one row of sequences one behind another."""
        config = self.mtllora_config[name]
        tasks = self.routes.of(x, config.tasks)
        # weights are brought to the input's type, not the other way round: they are far smaller
        inner = functional.linear(self.mtllora_dropout[name](x), self.mtllora_A[name].to(x.dtype))
        scaled_SR = self.mtllora_diagonal[name] * (config.lora_alpha / config.r)
        up_SOR = (self.mixed(name) * scaled_SR[:, None]).to(inner.dtype)
        if tasks is None:
            return functional.linear(inner, up_SOR[0])
        if tasks.ndim > 1:
            return _up_by_token(inner, up_SOR, tasks.to(x.device))
        update = torch.bmm(inner.reshape(len(x), -1, config.r), up_SOR[tasks.to(x.device)].mT)
        return update.reshape(*inner.shape[:-1], self.out_features)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refused: one weight cannot hold what differs between tasks.

        Raises:
            UserError: Always.
        """
        hint = "export one task as ordinary LoRA, and merge that: manyskills export RUN --format lora --task NAME"
        raise UserError("mtl_lora cannot be merged: each task has a part of its own", hint)

    def unmerge(self) -> None:
        """Nothing is ever merged."""


def _up_by_token(inner_BTR: torch.Tensor, up_SOR: torch.Tensor, tasks_BT: torch.Tensor) -> torch.Tensor:
    """Each token through its own task's matrix: one product, in which every other task's part of a token is zero."""
    mine_BTS = functional.one_hot(tasks_BT, len(up_SOR)).to(inner_BTR.dtype)
    spread_BTX = (mine_BTS[..., None] * inner_BTR[..., None, :]).flatten(-2)
    return functional.linear(spread_BTX, up_SOR.transpose(0, 1).flatten(1))


def _sizes(base_layer: nn.Module) -> tuple[int, int]:
    size = getattr(base_layer, "in_features", None), getattr(base_layer, "out_features", None)
    if not isinstance(size[0], int) or not isinstance(size[1], int):
        raise TypeError(f"MTL-LoRA adapts linear layers, {type(base_layer).__name__} is none")
    return size[0], size[1]


class MtlLoraTuner(BaseTuner):
    """Puts `MtlLoraLinear` into a network; holds which task reads which sequence."""

    prefix = "mtllora_"
    tuner_layer_cls = MtlLoraLinear
    target_module_mapping = {}  # noqa: RUF012 - peft's own type
    uses_shared_state = True
    routes: Routes

    @contextmanager
    def routed(self, tasks: torch.Tensor) -> Iterator[None]:
        """Within it, sequence number i of every batch is read by task number tasks[i], or token number i of a batch of
        one row by task number tasks[0, i]; outside nothing is set, and a network with several tasks refuses to run.

        Args:
            tasks: Indices into the configuration's `tasks`, int64.
        """
        before, self.routes.tasks = self.routes.tasks, tasks
        try:
            yield
        finally:
            self.routes.tasks = before

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        if "routes" not in self.__dict__:  # later adapters share it
            self.routes = Routes()

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        assert isinstance(peft_config, MtlLoraTunerConfig)
        if isinstance(target, MtlLoraLinear):
            target.update_layer(adapter_name, peft_config)
            return
        new = MtlLoraLinear(target, self.routes, adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            new.requires_grad_(False)
        self._replace_module(parent, target_name, new, target)


register(PEFT_TYPE, MtlLoraTunerConfig, MtlLoraTuner, MtlLoraTuner.prefix)
