"""What a run will cost, before it is started: steps, tokens, parameters, memory, truncation.

Nothing is trained and no weights are read; the network is built on the meta device, so a plan at real size needs only a
backbone's configuration and tokenizer.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from manyskills.config import ON_GRADIENTS, DbMtlConfig, TrainConfig, last_layers
from manyskills.data.activation_store import STATE_BYTES, different_tokens
from manyskills.data.preparation import Prepared, Truncation, prepare, read_tasks, synthetic_tasks
from manyskills.data.sampling import Phase, Sampler
from manyskills.data.text_set import gather
from manyskills.model.attention import choose_attention
from manyskills.model.backbones import load_backbone
from manyskills.model.chunks import PaddedChunk
from manyskills.model.methods.overview import MethodFacts, facts
from manyskills.model.multitask import MultiTaskModel, stored_as
from manyskills.model.quantization import saved_bytes
from manyskills.model.trunk import why_whole
from manyskills.tasks import SPLITS, SplitName
from manyskills.training.loop import positive_shares
from manyskills.training.measuring import conflict_steps
from manyskills.training.optimizer import training_bytes
from manyskills.training.schedule import Schedule
from manyskills.training.teachers import find_teachers

SAMPLED_STEPS = 50
"""Steps whose texts are looked at to estimate tokens; the sampler makes any step without the ones before it."""

OVERHEAD = 1.5
"""What a process holds for one byte that autograd saves: measured on the CPU with minilm, 1.56 (LoRA on attention),
1.53 (LoRA everywhere) and 1.14 (full fine-tuning)."""


@dataclass(frozen=True, slots=True)
class TaskPlan:
    """One task of a plan."""

    rows: dict[SplitName, int]
    rows_a_step: float
    texts_a_step: float
    truncation: Truncation
    synthetic: str | None


@dataclass(frozen=True, slots=True)
class Memory:
    """Estimated bytes on the training device.

    Attributes:
        weights: The backbone; quantised layers in 4 bits.
        training: Gradients and AdamW's two moments of everything that trains; the moments as `optim` keeps them.
        activations: What the backward pass keeps of the texts whose graph is held at one time.
        task_gradients: Each task's gradient on the shared module, where they are held one by one.
    """

    weights: int
    training: int
    activations: int
    task_gradients: int

    @property
    def total(self) -> int:
        """All of it; the libraries themselves take some hundred megabytes more."""
        return self.weights + self.training + self.activations + self.task_gradients


@dataclass(frozen=True, slots=True)
class LowerLayers:
    """Layers that run once for each text, because nothing in or below them trains.

    Attributes:
        count: How many.
        tokens: Of the different texts for training and validation.
        disk: Bytes that the states behind these layers take.
    """

    count: int
    tokens: int
    disk: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A run before it is started."""

    tasks: dict[str, TaskPlan]
    steps: int
    eval_steps: int
    tokens_a_step: float
    padded_tokens_a_step: float
    tokens: int
    tokens_to_validate: int
    method: MethodFacts
    trainable_heads: int
    memory: dict[str, Memory]
    step_memory: str
    lower_layers: LowerLayers | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {
            "method": self.method.to_dict(),
            "estimated_memory": {how: memory.total for how, memory in self.memory.items()},
        }


def make_plan(config: TrainConfig) -> Plan:
    """Read and check all data, build the network without weights, and estimate.

    Raises:
        UserError: Whatever would stop the run.
    """
    backbone = load_backbone(stored_as(config), weights=False)
    saved = saved_bytes(backbone.model) if backbone.config.quantize else 0
    model = MultiTaskModel(backbone, config.method, config.tasks)
    choose_attention(model, config.attention)
    if config.gradient_checkpointing:
        model.checkpoint_gradients()
    positions = model.architecture.max_positions
    find_teachers(config)
    rows = read_tasks(config, SPLITS)
    prepared = prepare(rows, config.tasks, config.max_length, model.tokenizer, model.template, positions, model.routes)
    schedule = Schedule.of(config, sum(len(part) for part in prepared.examples["train"].values()))
    steps = _look_at_steps(config, model, prepared, schedule.total)
    method = facts(model.backbone, config.method, model.backbone_parameters)
    shared = method.trainable
    heads = sum(p.numel() for _, p in model.head_parameters())
    synthetic = synthetic_tasks(rows)
    return Plan(
        tasks={
            name: TaskPlan(
                {split: len(rows[split][name].rows) for split in SPLITS},
                steps.rows[name],
                steps.texts[name],
                prepared.truncation[name],
                synthetic.get(name),
            )
            for name in config.tasks
        },
        steps=schedule.total,
        eval_steps=schedule.eval_steps,
        tokens_a_step=steps.tokens,
        padded_tokens_a_step=steps.padded,
        tokens=int(steps.tokens * schedule.total) if shared else 0,
        tokens_to_validate=int(prepared.store.lengths_N[prepared.used_texts("valid")].sum()),
        method=method,
        trainable_heads=heads,
        memory={
            how: _memory(model, config, saved, tokens)
            for how, tokens in (("single_pass", steps.most_padded), ("cached", steps.most_padded_chunk))
        },
        step_memory=config.step_memory,
        lower_layers=_lower_layers(config, model, prepared),
    )


def _lower_layers(config: TrainConfig, model: MultiTaskModel, prepared: Prepared) -> LowerLayers | None:
    last = last_layers(config.method)
    if last is None or not config.activation_cache or why_whole(model.architecture, last):
        return None
    indices_N = np.union1d(prepared.used_texts("train"), prepared.used_texts("valid"))
    tokens = different_tokens(prepared.store, indices_N)
    width = model.architecture.hidden_size
    return LowerLayers(model.architecture.layers - last, tokens, tokens * width * STATE_BYTES)


@dataclass(frozen=True, slots=True)
class _Steps:
    rows: dict[str, float]
    texts: dict[str, float]
    tokens: float
    padded: float
    most_padded: int
    most_padded_chunk: int


def _look_at_steps(config: TrainConfig, model: MultiTaskModel, prepared: Prepared, total: int) -> _Steps:
    """Averages and maxima over steps spread evenly over the run."""
    train = prepared.examples["train"]
    device = "cuda" if torch.cuda.is_available() else "cpu"  # the model here is on neither
    sampler = Sampler(train, config.sampling, config.batch_size, config.seed, positive_shares(config))
    phases = [Phase(0, tuple(config.tasks))]
    rows: dict[str, list[int]] = {name: [] for name in config.tasks}
    texts: dict[str, list[int]] = {name: [] for name in config.tasks}
    tokens, padded, chunks = [], [], []
    for step in np.unique(np.linspace(0, total - 1, min(SAMPLED_STEPS, total)).astype(int)).tolist():
        batch = sampler.at(step, phases)
        lengths_S = prepared.store.lengths_S[prepared.store.pieces(gather(batch).unique_N).sequences_S]
        sizes = [model.chunk_tokens(lengths_S[chunk]) for chunk in model.plan(lengths_S, config.token_budget, device)]
        tokens.append(int(lengths_S.sum()))
        padded.append(sum(sizes))
        chunks.append(max(sizes))
        for name in config.tasks:
            rows[name].append(len(batch[name]) if name in batch else 0)
            texts[name].append(len(np.unique(batch[name].texts_EK)) if name in batch else 0)
    return _Steps(
        {name: float(np.mean(values)) for name, values in rows.items()},
        {name: float(np.mean(values)) for name, values in texts.items()},
        float(np.mean(tokens)),
        float(np.mean(padded)),
        max(padded),
        max(chunks),
    )


def _memory(model: MultiTaskModel, config: TrainConfig, saved: int, padded_tokens: int) -> Memory:
    """Args: model on the meta device, the run, bytes that quantising saves, tokens whose graph is held."""
    weights = sum(p.numel() * p.element_size() for p in model.backbone.parameters()) - saved
    activations = padded_tokens * activation_bytes(model) if model.trains_backbone else 0
    training = training_bytes((p for p in model.parameters() if p.requires_grad), config.optim)
    return Memory(weights, training, activations, task_gradient_bytes(config, model))


def task_gradient_bytes(config: TrainConfig, model: MultiTaskModel) -> int:
    """One float32 row of the shared module's size a task, for a rule on gradients or for measured steps; `db_mtl` keeps
    as many averages."""
    if not isinstance(config.balancing, ON_GRADIENTS) and not conflict_steps(config, model):
        return 0
    rows = len(config.tasks) * (2 if isinstance(config.balancing, DbMtlConfig) else 1)
    return 4 * rows * sum(p.numel() for _, p in model.shared_parameters())


def activation_bytes(model: MultiTaskModel) -> int:
    """Bytes a token that the backward pass keeps, read off autograd itself on a network without weights.

    On the meta device attention falls back to a kernel that stores its scores, which grow with the length and which the
    fused kernels do not store; two lengths give the part that does not grow. Times `OVERHEAD` for what the allocator
    holds besides.

    Args:
        model: On the meta device.
    """
    short, long = 32, 64
    slope = (_saved_bytes(model, long) - _saved_bytes(model, short)) / (long - short)
    return max(int((_saved_bytes(model, short) - slope * short) * OVERHEAD), 0)


def _saved_bytes(model: MultiTaskModel, tokens: int) -> float:
    """Bytes a token that a forward pass of one sequence saves, weights left out."""
    weights = {p.untyped_storage()._cdata for p in model.backbone.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage
        return tensor

    ids_BT = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    # a ready-made mask keeps transformers from looking into a decoder's positions, which have no values here
    decoder = model.architecture.family == "decoder"
    mask = torch.ones(1, 1, tokens, tokens, dtype=torch.bool, device="meta") if decoder else None
    model.train()
    route_B = torch.zeros(1, dtype=torch.long, device="meta")
    with model.routed(route_B), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        states = model.states(PaddedChunk(ids_BT, mask))
    total = sum(storage.nbytes() for storage in saved.values())
    del states
    return total / tokens
