"""How much memory a run will take where it trains; read off a network without weights.

Shape legend: T tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from manyskills.config import ON_GRADIENTS, BackboneConfig, DbMtlConfig, TrainConfig
from manyskills.model.chunks import PaddedChunk
from manyskills.model.cross_entropy import BLOCK_BYTES
from manyskills.model.multitask import MultiTaskModel
from manyskills.training.measuring import conflict_steps
from manyskills.training.optimizer import training_bytes

OVERHEAD = 1.5
"""What a process holds for one byte that autograd saves: measured on the CPU with minilm, 1.56 (LoRA on attention),
1.53 (LoRA everywhere) and 1.14 (full fine-tuning)."""

LENGTHS = (16, 32, 48)
"""Of the sequences with which a network without weights is tried."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run will train, which need not be where it is planned.

    Attributes:
        device: A GPU if there is one, or if the run's optimiser works on no other device.
        bf16: Whether products are computed in bfloat16.
    """

    device: Literal["cpu", "cuda"]
    bf16: bool

    @classmethod
    def of(cls, config: TrainConfig) -> Place:
        """The place of a run. A GPU that is not here is taken to have bfloat16."""
        here = torch.cuda.is_available()
        device = "cuda" if here or config.optim != "adamw_torch" else "cpu"
        has_bf16 = device == "cuda" and (not here or torch.cuda.is_bf16_supported(including_emulation=False))
        return cls(device, has_bf16 if config.bf16 == "auto" else config.bf16)

    def stored(self, backbone: BackboneConfig) -> torch.dtype:
        """The number format of the backbone's weights, but for those in 4 bits."""
        if backbone.dtype != "auto":
            return getattr(torch, backbone.dtype)
        return torch.bfloat16 if self.device == "cuda" else torch.float32


@dataclass(frozen=True, slots=True)
class Memory:
    """Estimated bytes on the training device.

    Attributes:
        weights: The backbone; quantised layers in 4 bits.
        training: Gradients and AdamW's two moments of everything that trains; the moments as `optim` keeps them.
        activations: What the backward pass keeps of the texts whose graph is held at one time.
        task_gradients: Each task's gradient on the shared module, where they are held one by one.
        answers: States that predict the tokens of written answers, their gradients, one block of logits, and what an
            output layer that trains adds.
    """

    weights: int
    training: int
    activations: int
    task_gradients: int
    answers: int = 0

    @property
    def total(self) -> int:
        """All of it; the libraries themselves take some hundred megabytes more."""
        return self.weights + self.training + self.activations + self.task_gradients + self.answers


@dataclass(frozen=True, slots=True)
class Held:
    """What is held of one step at its fullest.

    Attributes:
        tokens: Whose graph is held, padding included.
        chunks: That they are in.
        longest: Tokens of the largest chunk.
        predicted: Tokens of answers.
    """

    tokens: int
    chunks: int
    longest: int
    predicted: int


@dataclass(frozen=True, slots=True)
class Kept:
    """What the backward pass keeps of a network's layers.

    Attributes:
        a_token: Bytes that grow with the tokens.
        a_chunk: Bytes that do not: copies of trained weights in half precision.
    """

    a_token: float
    a_chunk: float


class MemoryEstimate:
    """Bytes of a run's parts.

    Args:
        model: On the meta device, its weights in the number format of the place; layers are not checkpointed yet.
        config: The run.
        place: Where it will train.
        saved: Bytes that quantising saves.
    """

    def __init__(self, model: MultiTaskModel, config: TrainConfig, place: Place, saved: int) -> None:
        self.model, self.config, self.place = model, config, place
        weights = {id(p): p for part in (model.backbone, model.output_head) if part for p in part.parameters()}
        self._weights = sum(p.numel() * p.element_size() for p in weights.values()) - saved
        self._kept = kept_for_backward(model, bf16=place.bf16) if model.trains_backbone else Kept(0, 0)
        self._state_bytes = model.network.get_input_embeddings().weight.element_size()  # pyright: ignore

    def of(self, held: Held) -> Memory:
        """With so much of a step in memory at one time."""
        training = training_bytes((p for p in self.model.parameters() if p.requires_grad), self.config.optim)
        return Memory(
            self._weights, training, self._activations(held), task_gradient_bytes(self.config, self.model),
            self._answers(held.predicted),
        )  # fmt: skip

    def _activations(self, held: Held) -> int:
        kept = self._kept
        if not self.config.gradient_checkpointing or not kept.a_token:
            return int(OVERHEAD * (held.tokens * kept.a_token + held.chunks * kept.a_chunk))
        layers, width = self.model.architecture.layers, self.model.architecture.hidden_size
        one_layer = (held.longest * kept.a_token + kept.a_chunk) / layers  # computed again in the backward pass
        return int(OVERHEAD * (held.tokens * layers * width * self._state_bytes + one_layer))

    def _answers(self, predicted: int) -> int:
        output = self.model.output
        if not predicted or output is None:
            return 0
        weight_VH = output.weight_VH
        rows = 3 * predicted * weight_VH.shape[1] * self._state_bytes  # themselves, their gradient, and its multiple
        block = min(BLOCK_BYTES[self.place.device], 4 * predicted * len(weight_VH))
        copy = weight_VH.numel() * 2 if self.place.bf16 and weight_VH.element_size() != 2 else 0
        # each task's loss keeps its own gradient of a weight that trains until the backward pass multiplies it
        tasks = len(self.model.task_configs) - len(self.model.heads)
        trained = 4 * weight_VH.numel() * (tasks + 1) if weight_VH.requires_grad else 0
        return rows + 3 * block + copy + trained


def task_gradient_bytes(config: TrainConfig, model: MultiTaskModel) -> int:
    """One float32 row of the shared module's size a task, for a rule on gradients or for measured steps; `db_mtl` keeps
    as many averages."""
    if not isinstance(config.balancing, ON_GRADIENTS) and not conflict_steps(config, model):
        return 0
    rows = len(config.tasks) * (2 if isinstance(config.balancing, DbMtlConfig) else 1)
    return 4 * rows * sum(p.numel() for _, p in model.shared_parameters())


def kept_for_backward(model: MultiTaskModel, *, bf16: bool) -> Kept:
    """What autograd itself keeps on a network without weights.

    On the meta device attention falls back to a kernel that stores its scores, which grow with the square of the length
    and which the fused kernels do not store; three lengths tell the parts apart.

    Args:
        model: On the meta device.
        bf16: Products will be computed in bfloat16.
    """
    saved = [_saved_bytes(model, length, bf16=bf16) for length in LENGTHS]
    _, a_token, a_chunk = np.polyfit(LENGTHS, saved, 2)
    return Kept(max(round(a_token), 0), max(round(a_chunk), 0))


def _saved_bytes(model: MultiTaskModel, tokens: int, *, bf16: bool) -> int:
    """Bytes that a forward pass of one sequence saves, weights left out."""
    ids_BT = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    # a ready-made mask keeps transformers from looking into a decoder's positions, which have no values here
    decoder = model.architecture.family == "decoder"
    mask = torch.ones(1, 1, tokens, tokens, dtype=torch.bool, device="meta") if decoder else None
    model.train()
    route_B = torch.zeros(1, dtype=torch.long, device="meta")
    with model.routed(route_B), saved_storages(model) as saved, AutocastWithoutDevice() if bf16 else nullcontext():
        states = model.states(PaddedChunk(ids_BT, mask))
    total = sum(storage.nbytes() for storage in saved.values())
    del states
    return total


@contextmanager
def saved_storages(model: MultiTaskModel) -> Iterator[dict[int, torch.UntypedStorage]]:
    """Within it, collects what autograd saves besides the backbone's own weights."""
    weights = {p.untyped_storage()._cdata for p in model.backbone.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield saved


class AutocastWithoutDevice(TorchFunctionMode):
    """Products in bfloat16, as autocast makes them, which does not know the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Bring the factors of a product to bfloat16."""
        if func not in _PRODUCTS:
            return func(*args, **(kwargs or {}))
        args, kwargs = pytree.tree_map_only(torch.Tensor, _halved, (args, kwargs or {}))
        return func(*args, **kwargs)


_PRODUCTS = {
    functional.linear, functional.scaled_dot_product_attention, torch.addmm, torch.bmm, torch.matmul, torch.mm,
    torch.Tensor.__matmul__, torch.Tensor.matmul,
}  # fmt: skip


def _halved(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.bfloat16() if tensor.dtype == torch.float32 else tensor
